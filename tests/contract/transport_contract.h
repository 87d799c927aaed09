/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rig under the transport contract: two ends of a transport in one process,
 * each with its own memory files, and threads that poll the lanes of the side
 * that has nothing to say: the destination's in LM_PUSH, the source's in LM_PULL.
 *
 * Every region lies inside a larger file, between guard pages that must never
 * change.  Source memory holds a pattern that depends on region and offset,
 * destination memory OLD_BYTE.
 */
#ifndef TRANSPORT_CONTRACT_H
#define TRANSPORT_CONTRACT_H

#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "engine/base/clock.h"
#include "engine/transport/transport.h"

#define PAGE LM_PAGE_SIZE
#define OLD_BYTE 0xc5
#define GUARD_BYTE 0xee
#define RIG_REGIONS 2
/* Under a thread sanitizer a gibibyte takes minutes, and finds no more races than a few mebibytes. */
#ifdef __SANITIZE_THREAD__
#define RIG_SLOW true
#else
#define RIG_SLOW false
#endif

struct backend {
	const char *name;
	const char *listen;     /* address to listen on; NULL: the loop */
	const char *send;       /* LM_TCP_SEND */
	const char *place;      /* LM_TCP_PLACE */
	bool decorated;         /* inside a fault decorator that does nothing */
	bool rdma;
	enum lm_pin pin;
	bool pinned;            /* pages of the destination stay allocated */
};

struct side {
	struct lm_transport *t;
	struct lm_region region[RIG_REGIONS];
	uint8_t *map[RIG_REGIONS]; /* with the guards */
	size_t map_size;
	int open_result;
	struct lm_error err;
};

struct pump {
	struct rig *rig;
	unsigned lane;
	pthread_t thread;
	bool running;
	_Atomic bool stop;
	_Atomic uint64_t bytes, polls;
	_Atomic int result; /* error of poll, 1: closed in an orderly way */
};

struct rig {
	const struct backend *backend;
	struct lm_transport_params params[2]; /* by enum lm_side */
	uint8_t endpoint[LM_ENDPOINT_SIZE];
	struct lm_key keys[RIG_REGIONS];      /* of the passive side */
	char address[256];
	int listen_fd;
	uint64_t size;
	struct side src, dst;
	struct pump pumps[LM_LANES_MAX];
	struct guest {
		void *(*fn)(void *);
		void *arg;
		pthread_t *thread;
	} guests[4];
	unsigned nguests;
	void (*after_open)(struct lm_transport *t); /* of each end, before the regions are known; NULL: nothing */
	/* LM_PULL: by whoever polls the destination's lane */
	struct { uint64_t asked, whole, bytes; } fetch[LM_LANES_MAX];
	unsigned reopening; /* lane */
};

/* Regions of so many bytes; huge: on hugetlbfs (NULL when that is not to be had). */
struct rig *rig_new(const struct backend *b, unsigned nlanes, uint64_t size, bool huge);
/* Made, opened at both ends, regions known. */
struct rig *rig_open(const struct backend *b, unsigned nlanes, uint64_t size);
/* The same in LM_PULL. */
struct rig *rig_open_pull(const struct backend *b, unsigned nlanes, uint64_t size);
void rig_set_direction(struct rig *rig, enum lm_direction direction);
/* Open both ends, each in its thread, and make the regions known; asserts success. */
void rig_connect(struct rig *rig);
void rig_make_transports(struct rig *rig);
/*
 * Both ends reopen this lane with that token (NULL: each with the one of its params), the source
 * in a thread; open_result says how it went.
 */
void rig_reopen(struct rig *rig, unsigned lane, const char token[LM_TOKEN_SIZE], int timeout_ms);
/* The passive side first: the other needs its keys. */
void rig_add_regions(struct rig *rig, struct side *s);
/* Checks the guards, closes, frees. */
void rig_free(struct rig *rig);

uint64_t pattern_word(unsigned region, uint64_t offset);
void pattern_fill(uint8_t *p, unsigned region, uint64_t offset, uint64_t len);
/* Asserts what the destination has there. */
void expect_data(struct rig *rig, unsigned region, uint64_t offset, uint64_t len);
void expect_byte(struct rig *rig, unsigned region, uint64_t offset, uint64_t len, uint8_t byte);
uint64_t dest_hash(struct rig *rig);

void pump_start(struct rig *rig, unsigned lane);
void pump_stop(struct rig *rig, unsigned lane);
void pump_start_all(struct rig *rig);
void pump_stop_all(struct rig *rig);

/* Write all runs and flush, on a lane that somebody else polls at the destination. 0 or an error. */
int send_runs(struct rig *rig, unsigned lane, const struct lm_run *runs, unsigned n);
int write_runs(struct rig *rig, unsigned lane, const struct lm_run *runs, unsigned n);
int flush_lane(struct rig *rig, unsigned lane, uint64_t seq);
uint64_t next_flush(void);
/* LM_PULL: poll the destination's lane once; asserts that the count grows and that no more comes than was asked for. */
int fetch_poll(struct rig *rig, unsigned lane, int timeout_ms, struct lm_error *err);
/* Fetch all runs of which somebody else polls the source's lane, and wait until they are whole.  0 or an error. */
int fetch_runs(struct rig *rig, unsigned lane, const struct lm_run *runs, unsigned n);
int fetch_wait(struct rig *rig, unsigned lane);
/* As lm_transport_fetch(), and counts what was taken. */
int fetch_try(struct rig *rig, unsigned lane, const struct lm_run *runs, unsigned n, struct lm_error *err);
/* Poll the destination until it errs or timeout_ms have passed without: its error or 0. */
int dest_poll_until_error(struct rig *rig, unsigned lane, int timeout_ms, struct lm_error *err);
int source_poll_until_error(struct rig *rig, unsigned lane, int timeout_ms, struct lm_error *err);

/* Bytes that the file really holds, of those in [offset, offset + len) of a region. */
uint64_t file_bytes(const struct lm_region *r, uint64_t offset, uint64_t len);
unsigned open_descriptors(void);

static inline struct lm_run data_run(unsigned region, uint64_t offset, uint64_t len)
{
	return (struct lm_run){ .region = region, .kind = LM_RUN_DATA, .offset = offset, .len = len };
}

static inline struct lm_run zero_run(unsigned region, uint64_t offset, uint64_t len)
{
	return (struct lm_run){ .region = region, .kind = LM_RUN_ZERO, .offset = offset, .len = len };
}

/*
 * Map the source's region 0 anew, so large, over one mebibyte of its file again and
 * again, and make the destination's larger: for long runs.  And back.
 */
void rig_map_long(struct rig *rig, uint64_t size);
/* The source's content has come, and is made unlike it again. */
void rig_check_long(struct rig *rig, uint64_t from, uint64_t len);
void rig_unmap_long(struct rig *rig);

/* What no region takes, in regions of 64 pages. */
#define RIG_BAD_RUNS 13
extern const struct lm_run rig_bad_runs[RIG_BAD_RUNS];

/* transport_contract_fetch.c */
void fetched_runs_arrive_at_their_place_and_nowhere_else(void **state);
void fetched_runs_of_all_lengths_arrive_whole(void **state);
void fetched_runs_become_whole_in_their_order(void **state);
void fetched_zeros_and_holes_leave_no_page_on_either_side(void **state);
void a_large_hole_is_fetched_without_a_byte_of_data(void **state);
void hugetlbfs_is_fetched_and_its_holes_stay(void **state);
void many_lanes_fetch_at_once(void **state);
void what_was_fetched_is_visible_at_once(void **state);
void a_lane_that_is_asked_too_much_says_again_and_loses_nothing(void **state);
void a_wait_ends_when_the_other_descriptor_is_readable(void **state);
void each_direction_refuses_the_calls_of_the_other(void **state);
void the_source_refuses_to_answer_for_what_lies_outside(void **state);
void a_wait_ends_when_the_answer_has_come(void **state);
void an_idle_lane_takes_no_cpu(void **state);
void a_source_whose_answers_nobody_reads_takes_no_cpu(void **state);

/* transport_contract_fetch_end.c */
void nothing_that_was_fetched_lands_after_shut(void **state);
void a_cut_at_the_source_leaves_whole_what_was_counted(void **state);
void one_fetching_lane_cut_leaves_the_others_alive(void **state);
void the_end_of_the_peer_is_reported_to_who_fetches(void **state);
void the_end_of_the_peer_is_reported_to_who_answers(void **state);
void nothing_that_was_fetched_lands_after_close(void **state);

/* transport_contract_end.c */
void one_lane_cut_leaves_the_others_alive(void **state);
void shut_from_another_thread_ends_a_waiting_poll(void **state);
void nothing_lands_after_shut_at_the_destination(void **state);
void nothing_lands_after_close_at_the_destination(void **state);
void nothing_lands_after_the_fence_at_the_destination(void **state);
void without_the_fence_late_writes_land(void **state);
void an_orderly_close_is_told_from_a_cut(void **state);

/* transport_contract_back.c */
void a_lane_that_failed_comes_back_while_others_work(void **state);
void a_fetching_lane_that_failed_comes_back_while_others_work(void **state);
void a_lane_that_shows_an_old_token_stays_out(void **state);
void an_attempt_to_come_back_can_be_cancelled(void **state);
void what_the_peer_says_ends_the_wait_for_its_lanes(void **state);

/*
 * Where the two ends live: network namespaces ("" or NULL: this one), so that what
 * they say goes over a wire.  The calling thread becomes the destination's.
 */
void rig_namespaces(const char *source, const char *dest);
/* To be started in the source's namespace when the destination listens. */
void rig_before_open(struct rig *rig, void *(*fn)(void *), void *arg, pthread_t *ret);

/* Suites; each returns the number of failed tests. */
int transport_contract_tcp(void);
int transport_contract_tcp_fetch(void);
int transport_contract_fault(void);

#endif
