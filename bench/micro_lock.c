/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How long a storage lock takes to change hands, per backend: offer and take as they
 * are called inside the blackout, on real storage (the same that tests/contract uses),
 * 100 times back and forth between two processes.
 *
 *   micro-lock [lease|scsi-pr|sanlock]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/base/clock.h"
#include "lock_contract.h"

#define ROUNDS 100

static int by_size(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return x < y ? -1 : x > y;
}

static void print(const char *what, int64_t *v)
{
	qsort(v, ROUNDS, sizeof(*v), by_size);
	printf("  %-34s median %8.0f us   P99 %8.0f us   max %8.0f us\n", what, (double)v[ROUNDS / 2] / 1e3,
	       (double)v[ROUNDS * 99 / 100 - 1] / 1e3, (double)v[ROUNDS - 1] / 1e3);
}

static void check(const struct reply *a, const char *what)
{
	if (!a->r)
		return;
	fprintf(stderr, "%s: %s\n", what, a->err.msg);
	exit(1);
}

static int64_t call(struct host *h, enum op op, const struct host *peer, const char *what)
{
	struct reply a = host_do(h, op, peer, NULL, NULL);

	check(&a, what);
	return a.ns;
}

static void measure(const struct world *world)
{
	static int64_t offer[ROUNDS], take[ROUNDS], both[ROUNDS], prepare[ROUNDS], reclaim[ROUNDS];
	struct hosts t;

	hosts_start(&t, world);
	call(&t.h[0], ACQUIRE, NULL, "acquire");
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct host *from = &t.h[i % 2], *to = &t.h[1 - i % 2];

		prepare[i] = call(from, ANNOUNCE, NULL, "announce") + call(to, PREPARE, from, "prepare");
		call(from, OFFER, to, "offer");
		reclaim[i] = call(from, RECLAIM, NULL, "reclaim");
		prepare[i] = call(from, ANNOUNCE, NULL, "announce") + call(to, PREPARE, from, "prepare");
		offer[i] = call(from, OFFER, to, "offer");
		take[i] = call(to, TAKE, from, "take");
		both[i] = offer[i] + take[i];
	}
	hosts_stop(&t);
	printf("%s\n", world->name);
	print("hand-over: offer + take", both);
	print("  offer", offer);
	print("  take", take);
	print("before: announce + prepare", prepare);
	print("after an abort: reclaim", reclaim);
}

int main(int argc, char *argv[])
{
	static const struct world *const worlds[] = {
		&lease_world,
#ifdef HAVE_LIBISCSI
		&scsi_world,
#endif
#ifdef HAVE_SGUTILS
		&map_world,
		&disk_world,
#endif
#ifdef HAVE_SANLOCK
		&sanlock_world,
#endif
	};

	for (size_t i = 0; i < sizeof(worlds) / sizeof(worlds[0]); i++) {
		char why[256] = "";

		if (argc > 1 && strcmp(argv[1], worlds[i]->name))
			continue;
		if (worlds[i]->start(why, sizeof(why)))
			measure(worlds[i]);
		else
			printf("%s: skipped: %s\n", worlds[i]->name, why);
		worlds[i]->stop();
	}
	return 0;
}
