/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watcher of the rule of one running guest.  Two witnesses:
 *
 * Heartbeats.  The beat only ever grows, and what the engine copies to B is a
 * beat that A had before; so a beat in B greater than A's (B is read first) is
 * B's own.  Once B has run, a change in A means that both run.  This may miss a
 * short overlap but never accuses wrongly.
 *
 * QEMU's STOP and RESUME events, which carry times to the microsecond of the
 * same clock.  This misses nothing that QEMU tells.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "internal.h"
#include "../guest/layout.h"

static uint64_t beat(int fd)
{
	uint64_t v = 0;

	if (pread(fd, &v, sizeof(v), (off_t)(GUEST_BEAT_GPA + offsetof(struct guest_beat, beat))) < 0)
		return 0;
	return v;
}

static void *watch(void *arg)
{
	struct rig_watcher *w = arg;
	bool b_ran = false;
	uint64_t a, b, a_then = 0;

	while (!atomic_load(&w->stop)) {
		b = beat(w->fd[1]);
		a = beat(w->fd[0]);
		if (b_ran && a != a_then)
			atomic_store(&w->two, true);
		if (!b_ran && b > a) {
			b_ran = true;
			a = beat(w->fd[0]);
		}
		a_then = a;
		rig_sleep_ms(1);
	}
	return NULL;
}

void rig_watch(struct rig_vm *a, struct rig_vm *b)
{
	struct rig_watcher *w = &a->rig->watcher;

	rig_watch_stop(a->rig);
	w->fd[0] = dup(a->ram[0].fd);
	w->fd[1] = dup(b->ram[0].fd);
	atomic_store(&w->stop, false);
	atomic_store(&w->two, false);
	assert_int_equal(pthread_create(&w->thread, NULL, watch, w), 0);
	w->runs = true;
}

void rig_watch_stop(struct rig *rig)
{
	struct rig_watcher *w = &rig->watcher;

	if (!w->runs)
		return;
	atomic_store(&w->stop, true);
	pthread_join(w->thread, NULL);
	close(w->fd[0]);
	close(w->fd[1]);
	w->runs = false;
}

/* When the turn that begins at i ends: at the next one. */
static int64_t turn_end(const struct rig_qmp *q, unsigned i)
{
	return i + 1 < q->nturns ? q->turns[i + 1].time_us : INT64_MAX;
}

/* A QEMU that died while its guest ran counts as running on: who would start the other one then? */
static int64_t overlap_us(const struct rig_qmp *a, const struct rig_qmp *b)
{
	int64_t from, to, most = 0;

	for (unsigned i = 0; i < a->nturns; i++) {
		for (unsigned j = 0; j < b->nturns; j++) {
			if (!a->turns[i].runs || !b->turns[j].runs)
				continue;
			from = a->turns[i].time_us > b->turns[j].time_us ? a->turns[i].time_us :
									   b->turns[j].time_us;
			to = turn_end(a, i) < turn_end(b, j) ? turn_end(a, i) : turn_end(b, j);
			if (to - from > most)
				most = to - from;
		}
	}
	return most;
}

static int64_t last_turn_us(const struct rig_qmp *q)
{
	return q->nturns ? q->turns[q->nturns - 1].time_us : 0;
}

bool rig_saw_two(struct rig_vm *a, struct rig_vm *b, char *how, size_t size)
{
	int64_t us;

	rig_qmp_pump(a->q, 0);
	rig_qmp_pump(b->q, 0);
	us = overlap_us(a->q, b->q);
	if (us > INT64_C(1) << 60)
		snprintf(how, size, "by QEMU's events %s was started though %s ran (or had run until its QEMU died)",
			 last_turn_us(a->q) > last_turn_us(b->q) ? a->name : b->name,
			 last_turn_us(a->q) > last_turn_us(b->q) ? b->name : a->name);
	else if (us > 0)
		snprintf(how, size, "by QEMU's events both guests ran at a time for %" PRId64 " us", us);
	else if (atomic_load(&a->rig->watcher.two))
		snprintf(how, size, "both heartbeats moved at a time");
	return us > 0 || atomic_load(&a->rig->watcher.two);
}

int64_t rig_longest_pause_us(struct rig_vm *vm)
{
	int64_t most = 0, us;

	rig_qmp_pump(vm->q, 0);
	for (unsigned i = 0; i + 1 < vm->q->nturns; i++) {
		us = vm->q->turns[i + 1].time_us - vm->q->turns[i].time_us;
		if (!vm->q->turns[i].runs && us > most)
			most = us;
	}
	return most;
}
