/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "trip.h"
#ifdef HAVE_LIBISCSI
#include "tgt.h"
#endif

const struct world *world;
const char *const hosts[NHOSTS] = { "host-a", "host-b", "host-c" };

/* What the guest has for a disk: beside the lease, or the file behind the LUN. */
static void disk_make(struct trip *t)
{
#ifdef HAVE_LIBISCSI
	if (world == &scsi_world)
		snprintf(t->disk, sizeof(t->disk), "%s", tgt_file());
#endif
	if (!*t->disk) {
		FILE *f;

		snprintf(t->disk, sizeof(t->disk), "%s/disk", rig_dir(t->rig));
		f = fopen(t->disk, "we");
		assert_non_null(f);
		assert_int_equal(ftruncate(fileno(f), 4 << 20), 0);
		fclose(f);
	}
	snprintf(t->drive, sizeof(t->drive), "file=%s,format=raw,if=none,id=d0,cache=none", t->disk);
}

struct rig_vm *trip_next_vm(struct trip *t, enum rig_role role)
{
	char name[8];

	snprintf(name, sizeof(name), "v%u", t->n++);
	return rig_vm_start(t->rig, name, &t->config, role);
}

void trip_start(struct trip *t, struct rig *rig)
{
	memset(t, 0, sizeof(*t));
	t->rig = rig;
	world->fresh(t->uri);
	disk_make(t);
	t->config = (struct rig_config){ .mb = 64, .append = "mb=8 rate=1000",
					 .extra = { "-drive", t->drive, "-device", "virtio-blk-pci,drive=d0" } };
	t->vm = trip_next_vm(t, RIG_RUNS);
	rig_guest_wait_ready(t->vm);
}

void trip_begin(struct trip *t, struct rig_vm *to, const char *source_fault, const char *dest_fault)
{
	struct rig_run_options at_source = {
		.fault = source_fault, .breaks = t->breaks,
		.args = { "--host", hosts[t->host], "--lock", t->uri, "--peer-timeout", "2s", "--max-pause", "8s",
			  "--postcopy", t->postcopy ? "now" : "never" },
	};
	struct rig_run_options at_dest = {
		.fault = dest_fault, .breaks = t->breaks,
		.args = { "--host", hosts[!t->host], "--lock", t->uri, "--peer-timeout", "2s" },
	};

	world->enter(!t->host); /* the environment is the engine's */
	t->receive = rig_receive(to, &at_dest);
	world->enter(t->host);
	t->send = rig_send(t->vm, t->receive->address, &at_source);
}

/* They come to us when their engine has gone; the outsider and the backend's daemons are ours, too. */
static void guardians_end(void)
{
	int64_t limit = rig_now_ms() + ENGINE_MS;
	pid_t pid;

	while ((pid = rig_child_of(getpid(), "migrate-guard"))) {
		waitpid(pid, NULL, WNOHANG);
		if (rig_now_ms() > limit)
			fail_msg("a guardian does not end");
		rig_sleep_ms(10);
	}
}

void trip_end(struct trip *t)
{
	t->send_code = rig_run_wait(t->send, ENGINE_MS);
	t->receive_code = rig_run_wait(t->receive, ENGINE_MS);
	guardians_end();
}

void trip_assert_moved(const struct trip *t)
{
	if (t->send_code || t->receive_code)
		fail_msg("send ended with %d (%s), receive with %d (%s)", t->send_code, rig_run_outcome(t->send),
			 t->receive_code, rig_run_outcome(t->receive));
}

void trip_arrived(struct trip *t, struct rig_vm *to)
{
	rig_vm_end(t->vm);
	t->vm = to;
	t->host = !t->host;
}

struct ask {
	const char *host, *uri;
	unsigned index;
	enum lm_lock_what what;
	struct lm_lock_info info;
	int r;
};

/* In a process of that host: sanlock's library remembers whose daemon it talked to first. */
struct lm_lock_info trip_ask(const struct trip *t, unsigned host, enum lm_lock_what what, int *ret)
{
	struct ask *a = mmap(NULL, sizeof(*a), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct lm_lock_info info;
	pid_t pid;
	int status;

	assert_true(a != MAP_FAILED);
	pid = fork();
	if (!pid) {
		struct lm_error err;

		world->enter(host);
		a->r = lm_lock_run(t->uri, hosts[host], what, 0, &a->info, &err);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	info = a->info;
	*ret = a->r;
	munmap(a, sizeof(*a));
	return info;
}

/* The guest runs where it is said to, and that host holds the lock. */
void trip_assert_here(const struct trip *t)
{
	int r;
	struct lm_lock_info info = trip_ask(t, t->host, LM_LOCK_SHOW, &r);

	assert_int_equal(r, 0);
	if (info.state != LM_LOCK_HELD_HERE)
		fail_msg("the guest is at %s, but the lock is %s: %s", hosts[t->host], lm_lock_state_name(info.state),
			 info.text);
	assert_true(rig_vm_running(t->vm));
	trip_ask(t, !t->host, LM_LOCK_ACQUIRE, &r);
	assert_int_equal(r, -EBUSY);
}

static const struct world *world_find(const char *name)
{
	const struct world *all[] = {
		&lease_world,
#ifdef HAVE_LIBISCSI
		&scsi_world,
#endif
#ifdef HAVE_SANLOCK
		&sanlock_world,
#endif
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (!strcmp(all[i]->name, name))
			return all[i];
	return NULL;
}

int trip_main(int argc, char **argv, const struct CMUnitTest *tests, size_t ntests)
{
	char why[256] = "no such backend here";
	int rc;

	world = argc > 1 ? world_find(argv[1]) : NULL;
	if (!world || !world->start(why, sizeof(why))) {
		printf("SKIP: %s\n", why);
		if (world)
			world->stop();
		return 77;
	}
	argv[1] = argv[0];
	rc = rig_main(argc - 1, argv + 1, tests, ntests);
	world->stop();
	return rc;
}
