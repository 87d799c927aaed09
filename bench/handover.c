/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What storage locks cost inside the blackout, per backend: 100 migrations of a guest
 * there and back between two QEMUs, with the lock on real storage (tests/storage).
 *
 *   handover [BACKEND [ROUNDS]]      all backends, 100 rounds, when not given
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "trip.h"

#define ROUNDS_MAX 1000

static unsigned rounds = 100;

struct series {
	const char *name, *path;
	int64_t v[ROUNDS_MAX];
};

static struct series all[] = {
	{ .name = "offer, beside the load", .path = "blackout.lock_offer_ns" },
	{ .name = "take", .path = "blackout.lock_take_ns" },
	{ .name = "offer and take", .path = "blackout.lock_ns" },
	{ .name = "device state without the offer", .path = "blackout.device_state_ns" },
	{ .name = "blackout", .path = "blackout.total_ns" },
};
#define NSERIES (sizeof(all) / sizeof(all[0]))

static int by_size(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return x < y ? -1 : x > y;
}

static void print(struct series *s)
{
	qsort(s->v, rounds, sizeof(s->v[0]), by_size);
	printf("  %-32s median %8.3f ms   P99 %8.3f ms   max %8.3f ms\n", s->name, (double)s->v[rounds / 2] / 1e6,
	       (double)s->v[rounds > 1 ? rounds * 99 / 100 - 1 : 0] / 1e6, (double)s->v[rounds - 1] / 1e6);
}

static void measure(struct rig *rig)
{
	struct trip t;

	trip_start(&t, rig);
	for (unsigned i = 0; i < rounds; i++) {
		struct rig_vm *to = trip_next_vm(&t, RIG_WAITS);

		trip_begin(&t, to, NULL, NULL);
		trip_end(&t);
		trip_assert_moved(&t);
		for (size_t k = 0; k < NSERIES; k++)
			all[k].v[i] = rig_summary_int(t.send, all[k].path);
		trip_arrived(&t, to);
	}
	trip_assert_here(&t);
	printf("%s, %u migrations:\n", world->name, rounds);
	for (size_t k = 0; k < NSERIES; k++)
		print(&all[k]);
}

/* A process each: the rig ends the storage's daemons with a test. */
static int all_backends(const char *self)
{
	static const char *const names[] = { "lease", "scsi-pr", "sanlock" };
	int worst = 0, status;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		pid_t pid = fork();

		if (!pid) {
			execl(self, self, names[i], NULL);
			_exit(127);
		}
		if (waitpid(pid, &status, 0) != pid || (status && WEXITSTATUS(status) != 77))
			worst = 1;
	}
	return worst;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = { RIG_TEST(measure) };
	unsigned long n = argc > 2 ? strtoul(argv[2], NULL, 10) : rounds;

	if (argc < 2)
		return all_backends("/proc/self/exe");
	if (!n || n > ROUNDS_MAX) {
		fprintf(stderr, "rounds: 1 to %d\n", ROUNDS_MAX);
		return 2;
	}
	rounds = (unsigned)n;
	return trip_main(2, argv, tests, 1);
}
