/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures from outside how long a guest stood still while it moved from
 * source A to destination B, by the heartbeat page (layout.h) in both RAM
 * files.  This needs no clock of the guest's.
 *
 * The test guest's beat only ever grows.  Copies of A's page that reach B show
 * at most the beat that A had, so the first beat in B greater than A's last
 * one can only come from B running.  Progress is the greater of the two beats,
 * and the blackout is the time during which there was none.
 *
 * Limits: the observer must get CPU time; max_sample_ns tells the longest time
 * it did not look, which bounds the error of the other figures upwards.  It
 * looks every 100 us, less often (to 1 ms) while nothing moves for long: a
 * faster look starves a guest of a software KVM that shares its CPU, and what
 * it then measures is itself.
 */
#ifndef TEST_OBSERVE_H
#define TEST_OBSERVE_H

#include <stdbool.h>
#include <stdint.h>

struct observer;

struct observer_result {
	int64_t max_gap_ns;	/* longest time without progress; may be
					 * one that had not ended */
	int64_t max_gap_start;	/* when it began, CLOCK_MONOTONIC ns */
	int64_t t_last_a;	/* A's last change, CLOCK_MONOTONIC ns, 0: none */
	int64_t t_first_b;	/* B's first beat of its own, 0: none */
	int64_t blackout_ns;	/* t_first_b - t_last_a, -1 if B did not run */
	int64_t max_sample_ns;	/* longest time between two looks */
	uint64_t samples;
	uint64_t beat_a, beat_b; /* as last seen */
};

/*
 * Starts the thread that looks.  A must be running.  B's file may
 * come later; path_b may be NULL.  NULL is returned with a message on stderr.
 *
 * B is read with pread() and never mapped: a read through a mapping of a hole
 * would put a page there, and the engine under test may rely on holes.
 */
struct observer *observer_start(const char *path_a, const char *path_b);

/* Whether B has run by itself already. */
bool observer_saw_b(const struct observer *o);

/* Ends the thread, frees o. */
void observer_stop(struct observer *o, struct observer_result *result);

#endif
