/* SPDX-License-Identifier: Apache-2.0 */
/* The world of one test: made before it, gone after it, however it ends. */
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>
#include "internal.h"
#include "sample.h"

static struct rig *current; /* for atexit and signals */
static unsigned counter, nran, nskipped;

int64_t rig_now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int64_t rig_realtime_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * INT64_C(1000000) + t.tv_nsec / 1000;
}

void rig_sleep_ms(int ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000L };

	nanosleep(&t, NULL);
}

const void *rig_arg(const struct rig *rig)
{
	return rig->test->arg;
}

const char *rig_dir(const struct rig *rig)
{
	return rig->dir;
}

void rig_path(const struct rig *rig, char path[RIG_PATH_MAX], const char *fmt, ...)
{
	va_list args;
	int n = snprintf(path, RIG_PATH_MAX, "%s/", rig->dir);

	va_start(args, fmt);
	vsnprintf(path + n, RIG_PATH_MAX - (size_t)n, fmt, args);
	va_end(args);
}

void rig_skip(struct rig *rig, const char *why)
{
	printf("SKIP: %s\n", why);
	fflush(stdout);
	rig->skipped = true;
	nskipped++;
	skip();
	abort(); /* not reached: skip() jumps */
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

/* Processes first: they hold what the rest would like to remove. */
static void end_everything(struct rig *rig)
{
	rig_watch_stop(rig);
	rig_procs_end(rig);
	rig_runs_free(rig);
	rig_relays_free(rig);
	rig_vms_free(rig);
	rig_hugepages_restore(rig);
	nftw(rig->dir, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

static void print_logs(const struct rig *rig)
{
	rig_procs_print_logs(rig);
	rig_runs_print_events(rig);
	rig_vms_print_logs(rig);
}

static void at_exit(void)
{
	if (!current)
		return;
	end_everything(current);
	current = NULL;
}

/* A timeout of the test harness comes as SIGTERM. */
static void on_signal(int sig)
{
	if (current)
		print_logs(current);
	at_exit();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void once(void)
{
	static bool done;

	if (done)
		return;
	done = true;
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	prctl(PR_SET_CHILD_SUBREAPER, 1); /* what engines leave behind comes to us */
	atexit(at_exit);
	rig_ram_sweep();
}

int rig_setup(void **state)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	once();
	if (!rig)
		return -1;
	rig->test = *state;
	rig->serial = ++counter;
	rig->huge_saved = -1;
	rig->watcher.fd[0] = rig->watcher.fd[1] = -1;
	strcpy(rig->dir, "/tmp/rig-XXXXXX");
	if (!mkdtemp(rig->dir)) {
		free(rig);
		return -1;
	}
	current = rig;
	*state = rig;
	return 0;
}

void rig_body(void **state)
{
	struct rig *rig = *state;

	nran++;
	rig->test->fn(rig);
	rig->passed = true;
}

int rig_teardown(void **state)
{
	struct rig *rig = *state;

	if (!rig->passed && !rig->skipped)
		print_logs(rig);
	end_everything(rig);
	current = NULL;
	free(rig);
	return 0;
}

static bool chosen(int argc, char **argv, const char *name)
{
	for (int i = 1; i < argc; i++) {
		if (!fnmatch(argv[i], name, 0))
			return true;
	}
	return argc < 2;
}

/* A row that is to run always and does not exist would be noticed by nobody. */
static void check_always(const struct CMUnitTest *tests, size_t ntests, const char *const *always)
{
	for (; always && *always; always++) {
		size_t i = 0;

		while (i < ntests && strcmp(tests[i].name, *always))
			i++;
		if (i == ntests) {
			fprintf(stderr, "there is no row %s, which is to run always\n", *always);
			exit(1);
		}
	}
}

/* How many rows of the matrix the sample leaves out goes to tools/check. */
static size_t choose(int argc, char **argv, const struct CMUnitTest *tests, size_t ntests, size_t fixed,
		     const char *const *always, struct CMUnitTest *ret)
{
	size_t n = 0, rows = 0, taken = 0;

	for (size_t i = 0; i < ntests; i++) {
		bool row = i >= fixed, in;

		if (!chosen(argc, argv, tests[i].name))
			continue;
		in = !row || sample_has(i - fixed, tests[i].name, always);
		rows += row;
		taken += row && in;
		if (in)
			ret[n++] = tests[i];
	}
	if (taken < rows)
		printf("sample: %zu of %zu rows\n", taken, rows);
	return n;
}

int rig_main_matrix(int argc, char **argv, const struct CMUnitTest *tests, size_t ntests, size_t fixed,
		    const char *const *always)
{
	struct CMUnitTest *some = calloc(ntests, sizeof(*some));
	const char *slash = strrchr(argv[0], '/');
	int failed;
	size_t n;

	if (!some)
		return 1;
	check_always(tests, ntests, always);
	n = choose(argc, argv, tests, ntests, fixed, always, some);
	if (!n) {
		fprintf(stderr, "no test has such a name, or the sample (LM_SAMPLE) is empty\n");
		free(some);
		return 1;
	}
	failed = _cmocka_run_group_tests(slash ? slash + 1 : argv[0], some, n, NULL, NULL);
	free(some);
	if (failed)
		return 1;
	return nran && nran == nskipped ? 77 : 0;
}

int rig_main(int argc, char **argv, const struct CMUnitTest *tests, size_t ntests)
{
	return rig_main_matrix(argc, argv, tests, ntests, ntests, NULL);
}
