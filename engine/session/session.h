/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session: what both sides share, and the state of each.
 *
 * Everything here belongs to the thread that runs the session, except where a
 * lane's thread or the relay is named.  cancel_fd is written by anybody.
 */
#ifndef LM_SESSION_H
#define LM_SESSION_H

#include "engine/control/control.h"
#include "engine/precopy/converge.h"
#include "engine/precopy/copy.h"
#include "engine/switchover/guardian.h"
#include "engine/precopy/lanes.h"
#include "engine/postcopy/state.h"
#include "engine/postcopy/puller.h"
#include "engine/switchover/relay.h"
#include "engine/transport/registry.h"
#include "engine/vm/vm.h"

/* Deadlines of steps that take milliseconds when all is well. */
#define LM_CONNECT_TIMEOUT_NS (10 * LM_NS_PER_S)
#define LM_ABORT_TIMEOUT_NS   (1 * LM_NS_PER_S)
#define LM_RESUME_TIMEOUT_NS  (10 * LM_NS_PER_S)
/* A stranger on the destination's port has so long to say HELLO, and in a post-copy to say RECOVER after it. */
#define LM_HELLO_TIMEOUT_NS   (2 * LM_NS_PER_S)

struct lm_source {
	struct lm_dirty *tracker;
	struct lm_copier copier;
	struct lm_converge converge;
	struct lm_pageset dirty, absent, holes, todo, lost;
	struct lm_relay relay;
	struct lm_lanes lanes;
	int64_t last_scan_ns;  /* when the scan before began */
	int64_t last_ping_ns, last_progress_ns;
	int64_t asked_ns;      /* when the first PING was sent after the peer was last heard */
	uint64_t last_progress_bytes;
	int64_t deadline_ns;   /* for all before the switchover */
	int64_t stopped_realtime_ns;
	int64_t stopped_seen_ns; /* when we learned that the guest stopped, CLOCK_MONOTONIC */
	bool pause_begun, commit_sent;
	bool postcopy; /* decided: pages will stay behind */
	bool may_stop; /* the copy that runs may be interrupted: another scan, and a decision, follow */
	bool denied;   /* it was said that post-copy, which was asked for, cannot be */
	unsigned round;
	uint64_t round_pages, round_done0;
	int64_t round_began_ns, next_look_ns;
};

enum lm_dest_state { LM_DEST_OPENING, LM_DEST_COPYING, LM_DEST_PREPARED, LM_DEST_LOADED, LM_DEST_DONE };

/* A lane that comes back is waited for by its own thread. */
struct lm_dest_reopen {
	struct lm_transport_params params;
	int stop_fd;             /* eventfd: give the attempt up; -1: not made */
	uint64_t dropped;        /* bits: LANE_DROP has come, and no LANE_OPEN since */
	unsigned lane;           /* of the last attempt */
	_Atomic bool begun;      /* set by the session's thread, taken by the lane's */
	_Atomic bool under_way;  /* cleared by the lane's thread: until then nobody else touches the lane */
};

struct lm_dest {
	enum lm_dest_state state;
	int listen_fd;
	int state_fd;             /* towards the VM; -1: not loading */
	struct lm_open open;      /* what the source said */
	_Atomic uint64_t *placed; /* data bytes, per lane, written by the lane's thread */
	_Atomic bool stop;        /* lane threads end */
	uint64_t state_bytes;
	uint8_t *held;            /* the device state, when --verify holds it back; held_room bytes */
	size_t held_room;
	int64_t load_ns;
	bool load_begun, committed, lane_dropped;
	bool may_have_run; /* the VM was told to run and has not said that it did not */
	struct lm_error *lane_errors; /* per lane, written by its thread before it ends */
	struct lm_dest_reopen reopen;
};

/* Post-copy: what both sides have of it. */
struct lm_postcopy_session {
	bool allowed;             /* both sides agree that it may be */
	bool armed;               /* POSTCOPY was sent / answered: the switchover will leave pages behind */
	struct lm_transport *transport;
	struct lm_comeback comeback; /* of its lanes */
	struct lm_pcstate state;
	uint8_t secret[LM_TOKEN_SIZE];
	unsigned nlanes;          /* of the background; one more is for faults */
	uint64_t max_bytes_per_s;
	int64_t began_ns;         /* COMMIT */
	int64_t last_event_ns, last_ping_ns;
	uint64_t last_bytes;
	uint64_t failed_told;     /* a bit per lane whose failure was told of */
	/* source */
	struct lm_pool *pool;     /* answers on all lanes */
	_Atomic bool stop;
	_Atomic unsigned ended;   /* lanes that answer no more, for whatever reason */
	_Atomic uint64_t failed;  /* a bit per lane whose thread has left an error, written before */
	bool whole;               /* the destination has said so */
	struct lm_error *lane_errors;
	struct lm_pageset told;   /* pages that were named as left */
	/* destination */
	struct lm_pageset watched, to_show; /* pages that may have to be shown, and room for some of them */
	unsigned show_region;     /* up to here they have been */
	uint64_t show_page;
	uint64_t gone;            /* a bit per lane that failed and is not back */
	bool bound, known;        /* the lanes can be used; all that is left was named */
	struct lm_pager *pager;
	struct lm_puller puller;
};

enum lm_mode { LM_MODE_LIVE, LM_MODE_SAVE, LM_MODE_RESTORE };

/* The guest's storage locks (handover.c). */
struct lm_handover {
	struct lm_locks locks;       /* none when locks.n is 0 */
	struct lm_lock_notes answer; /* source: from the destination */
	struct lm_lock_notes offer;  /* destination: from the source; n is 0 until it came */
	bool offered;                /* source: the guest may run here only after lm_handover_reclaim() */
	bool quiet;                  /* source: QEMU has said that nothing is in flight */
	int64_t offer_ns, take_ns;
};

struct lm_session {
	enum lm_mode mode;
	struct lm_image_session *img; /* save.c, restore.c; NULL in LM_MODE_LIVE */
	struct lm_options opt;    /* a copy, so that the library may change it */
	struct lm_options *owned; /* what the VM logs through */
	enum lm_side side;
	struct lm_vm *vm;         /* owned */
	int cancel_fd;            /* owned; an eventfd */
	struct lm_ram ram;
	struct lm_control control;
	struct lm_transport *transport;
	struct lm_pool *pool;
	struct lm_guardian guardian;
	struct lm_summary summary;
	char address[LM_ADDRESS_MAX]; /* destination: where it listens */
	char peer[LM_ADDRESS_MAX];
	int64_t started_ns;
	struct lm_postcopy_session pull;
	struct lm_handover handover;
	_Atomic bool postcopy_asked;
	int64_t patience_ns;      /* pre-copy: how much longer than the peer timeout silence is borne */
	bool recovering;          /* made by lm_recover_open(): there is nothing but a post-copy to go on with */
	bool urgent;              /* the guest stands still: our threads come first; nice: what this one had before */
	int nice;
	bool opened;              /* both sides agreed: from here on a failure is an abort */
	union {
		struct lm_source src;
		struct lm_dest dst;
	};
};

/* options (from malloc), vm and cancel_fd become the session's, also on error. */
int lm_session_new(struct lm_options *options, enum lm_side side, struct lm_vm *vm, int cancel_fd,
		   struct lm_session **ret, struct lm_error *err);

/* The two sides; called by lm_session_run(). */
int lm_source_run(struct lm_session *s, struct lm_error *err);
int lm_dest_run(struct lm_session *s, struct lm_error *err);
int lm_dest_listen(struct lm_session *s, struct lm_error *err);
void lm_source_cleanup(struct lm_session *s);
void lm_dest_cleanup(struct lm_session *s);

/* rounds.c: pre-copy */
int lm_precopy_arm(struct lm_session *s, struct lm_error *err);
int lm_precopy_first(struct lm_session *s, struct lm_error *err);
int lm_precopy_rounds(struct lm_session *s, struct lm_error *err);
/* Look at the peer, the user and the clock; to be called several times a second while waiting. */
int lm_precopy_tick(struct lm_session *s, struct lm_error *err);
/* One scan + copy with the guest stopped and drained. */
int lm_precopy_last(struct lm_session *s, struct lm_error *err);

/* switchover.c: from PREPARE to RESUMED */
int lm_switchover(struct lm_session *s, struct lm_error *err);
/* Bring the guest back to life at the source, whatever the stage.  Keeps s->summary. */
void lm_switchover_undo(struct lm_session *s);

/* For who stops a VM otherwise than live: vm_fd (closed here) is where its device state goes. */
int lm_switchover_pause_vm(struct lm_session *s, int vm_fd, struct lm_error *err);
int lm_switchover_save_state(struct lm_session *s, struct lm_error *err);
int lm_switchover_check_layout(struct lm_session *s, struct lm_error *err);
/* COMMIT, and its answer. */
int lm_switchover_commit(struct lm_session *s, struct lm_error *err);

/* Sessions over an image (image_session.h) */
int lm_session_new_save(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
			struct lm_error *err);
int lm_session_new_restore(struct lm_options *options, struct lm_vm *vm, int cancel_fd, struct lm_session **ret,
			   struct lm_error *err);
int lm_save_open_image(struct lm_session *s, struct lm_error *err);
int lm_save_run(struct lm_session *s, struct lm_error *err);
int lm_restore_open_image(struct lm_session *s, struct lm_error *err);
int lm_restore_run(struct lm_session *s, struct lm_error *err);
struct lm_guardian_witness lm_image_session_witness(const struct lm_session *s);
void lm_image_session_end(struct lm_session *s);

/*
 * handover.c: storage locks.  All of it does nothing and returns 0 when the guest has none.
 * At open: the source acquires them, the destination only looks whether it can use them.
 */
int lm_handover_open(struct lm_session *s, struct lm_error *err);
/* Source, after READY: both sides see the same storage, and the destination is prepared. */
int lm_handover_announce(struct lm_session *s, struct lm_error *err);
/* Source, guest stopped and QEMU done with the disks: offer, and tell the destination. */
int lm_handover_offer(struct lm_session *s, struct lm_error *err);
/* Source, before the guest may run again: 0 when it may.  Tries until the deadline; final errors: locks.h. */
int lm_handover_reclaim(struct lm_session *s, int64_t deadline_ns, struct lm_error *err);
/* Destination: handlers of the table. */
int lm_handover_prepare(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
int lm_handover_offered(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
/* Destination, after COMMIT: 0 when the guest may run here. */
int lm_handover_take(struct lm_session *s, struct lm_error *err);
/* Destination, when the VM is known to be gone without having run: the source can have them again. */
void lm_handover_give_back(struct lm_session *s);
/* After the guest has begun to run: its VM keeps what shows that the holder lives. */
void lm_handover_keep(struct lm_session *s);

/* postcopy_source.c */
/* Before PREPARE: the destination gets ready, the lanes for fetching are opened, what is dirty is left behind. */
int lm_postcopy_prepare(struct lm_session *s, struct lm_error *err);
/* The guest has stopped and was scanned: the rest that is left behind.  *ret_pages: all of it. */
int lm_postcopy_leave(struct lm_session *s, bool last, uint64_t *ret_pages, struct lm_error *err);
/* After COMMIT: answer until the destination has every page, looking for it anew when it is lost. */
int lm_postcopy_serve(struct lm_session *s, struct lm_error *err);
/* After COMMIT without an answer: 0 when the destination came back for its pages, so the guest runs there. */
int lm_postcopy_find(struct lm_session *s, struct lm_error *err);
void lm_postcopy_source_end(struct lm_session *s);

/* postcopy_dest.c: handlers of the destination's table, and what follows COMMIT */
int lm_postcopy_arm(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
int lm_postcopy_keys(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
int lm_postcopy_left(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
int lm_postcopy_pull(struct lm_session *s, struct lm_error *err);
/* The same out of an image: pager, state file and puller are made, then it is all fetched. */
int lm_postcopy_arm_here(struct lm_session *s, struct lm_error *err);
int lm_postcopy_pull_image(struct lm_session *s, struct lm_error *err);
/* A post-copy whose engine died: pager and state are taken over. */
int lm_postcopy_take_over(struct lm_session *s, struct lm_error *err);
void lm_postcopy_dest_end(struct lm_session *s);
/*
 * postcopy_show.c: once the guest runs.  Only on tmpfs: a huge page that is whole is a stretch by
 * itself.  Without memory nothing is shown early.
 */
void lm_postcopy_show_begin(struct lm_session *s);
/* A step of about 2 ms; false when all has been shown.  What is missing still is shown as it comes. */
bool lm_postcopy_show_some(struct lm_session *s);
void lm_postcopy_show_end(struct lm_postcopy_session *p); /* takes one that was not begun */
/* dest_lanes.c */
void lm_dest_place_worker(void *session, unsigned lane); /* a lane's thread */
/* Bytes that the lanes have placed; any thread. */
uint64_t lm_dest_placed_bytes(const struct lm_session *s);
/* Until no lane's return is under way; at most LM_LANE_ACCEPT_NS. */
void lm_dest_reopen_wait(struct lm_session *s);
/* After this no byte of the source can reach guest RAM.  May be called again. */
void lm_dest_fence(struct lm_session *s);
int lm_dest_lane_drop(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
int lm_dest_lane_open(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
/* dest.c: the next connection that speaks our protocol, at most until the deadline. */
int lm_dest_accept(struct lm_session *s, int64_t deadline_ns, struct lm_error *err);
/* dest_open.c: the same guest on both sides; and the handler of OPEN */
int lm_dest_check_open(const struct lm_session *s, const struct lm_open *o, struct lm_error *err);
int lm_dest_handle_open(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
/* dest.c: a source that is at work pings: it is waited for as long as it does. */
int lm_dest_next_message(struct lm_session *s, struct lm_msg *msg, struct lm_error *err);
/* The VM waits for its device state, which lm_dest_write_state() gives it. */
int lm_dest_begin_load(struct lm_session *s, struct lm_error *err);
int lm_dest_write_state(struct lm_session *s, const uint8_t *p, size_t len, struct lm_error *err);
int lm_dest_run_guest(struct lm_session *s, bool run, struct lm_vm_times *times, struct lm_error *err);
/* The guest will not run here; true: and certainly has not, nor can any more. */
bool lm_dest_undo(struct lm_session *s, const struct lm_error *why);
/* source.c */
/* OPEN, or QUICK: what the guest is and the layout of its memory. */
int lm_source_send_open(struct lm_session *s, enum lm_msg_type type, const char *transports, struct lm_error *err);
int lm_source_connect(struct lm_session *s, int64_t deadline_ns, struct lm_error *err);

/* postcopy.c: both sides */
void lm_postcopy_event(struct lm_session *s, const struct lm_postcopy_stats *stats);
/* Tell the user which lanes failed (a bit each) since the last call, and that the others go on. */
void lm_postcopy_tell_lanes(struct lm_session *s, uint64_t failed,
			    const char *(*why)(const struct lm_session *s, unsigned lane));
void lm_postcopy_tell_back(struct lm_session *s, unsigned lane);
/*
 * postcopy_lanes.c: lanes that come back in post-copy.  After the transport was opened with p; nothing
 * more happens when one of both sides cannot.
 */
int lm_postcopy_lanes_init(struct lm_session *s, const struct lm_transport_params *p, struct lm_error *err);
/* Destination, several times a second while pages are fetched: try, take back. */
int lm_postcopy_lanes_tick(struct lm_session *s, struct lm_error *err);
/* Destination: no attempt is under way afterwards. */
void lm_postcopy_lanes_settle(struct lm_session *s);
/* Source: LANE_OPEN has come; and, several times a second, what has become of it. */
int lm_postcopy_lane_open(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err);
void lm_postcopy_lanes_look(struct lm_session *s);
bool lm_secret_equal(const uint8_t a[static LM_TOKEN_SIZE], const uint8_t b[static LM_TOKEN_SIZE]);

/* Helpers (session.c) */
int lm_session_stage(struct lm_session *s, const char *name, struct lm_error *err);
void lm_session_event(struct lm_session *s, struct lm_event *event);
void lm_session_log(struct lm_session *s, enum lm_log_level level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* From the pause to the guest's going on, wherever that is: session, lanes and relay come before others (urgent.h). */
void lm_session_urgent(struct lm_session *s, bool urgent);
/* The process behind the VM has exited: a VM that does not answer is not lost yet. */
bool lm_session_vm_gone(const struct lm_session *s);
int lm_session_check_cancel(struct lm_session *s, struct lm_error *err);
/* What was asked while nothing could be cancelled does not count later. */
void lm_session_forget_cancel(struct lm_session *s);
/*
 * Transports that this side may use towards the peer (NULL: not known yet), the best
 * first, comma separated.  When there is none: why not.
 */
int lm_session_transports(const struct lm_session *s, const char *peer, char *ret, size_t size,
			  struct lm_error *err);
/* The first of the peer's names that this side may use. */
int lm_session_choose(const struct lm_session *s, const char *theirs, const char *peer,
		      char ret[static LM_TRANSPORT_NAME_MAX], struct lm_error *err);
/* Whether name is in a comma separated list. */
bool lm_name_in_list(const char *name, const char *list);
int lm_session_make_transport(struct lm_session *s, const char *name, struct lm_error *err);
int lm_session_new_transport(const char *name, struct lm_transport **ret, struct lm_error *err);
/*
 * A session that goes on with a post-copy.  vm has no ops but detach; ram and pager
 * (destination) and state become the session's, also on error.
 */
int lm_session_new_recover(struct lm_options *options, enum lm_side side, struct lm_vm *vm, int cancel_fd,
			   struct lm_ram *ram, struct lm_pager *pager, struct lm_pcstate *state,
			   struct lm_session **ret, struct lm_error *err);
/* What both directions of both sides have in common; the caller adds token, deadline and endpoint. */
struct lm_transport_params lm_session_transport_params(const struct lm_session *s, enum lm_direction direction);
/*
 * Open s->transport.  A peer whose part of that fails says so and why, which is worth more
 * than waiting for lanes, or than what this side would make of it.
 */
int lm_session_open_lanes(struct lm_session *s, struct lm_transport_params *p, struct lm_error *err);
/*
 * While memory is registered with a device, which can take minutes: tell the peer that
 * we live.  A thread that pings until it is stopped.
 */
struct lm_keepalive {
	struct lm_control *control;
	pthread_t thread;
	int stop_fd; /* eventfd; -1: not running */
};
int lm_keepalive_start(struct lm_keepalive *k, struct lm_control *control, struct lm_error *err);
void lm_keepalive_stop(struct lm_keepalive *k); /* takes one that was not started if stop_fd is -1 */
/*
 * An answer of a peer that may be registering memory meanwhile: it is waited for while it
 * gives a sign of life at least every silence_ns, at most until limit_ns.
 */
int lm_session_expect(struct lm_session *s, enum lm_msg_type type, struct lm_msg *msg, int64_t silence_ns,
		      int64_t limit_ns, struct lm_error *err);
/* Deadline for one answer of the peer. */
int64_t lm_session_peer_deadline(const struct lm_session *s);
int64_t lm_session_vm_deadline(const struct lm_session *s);
/*
 * Before the switchover the guest runs at the source, and nothing is lost by waiting for the
 * network: whether the control channel outlives s->patience_ns more of silence.
 */
int lm_session_be_patient(struct lm_session *s, bool patient, struct lm_error *err);

/* ramhash.c: hash over the content of all RAM, whether its zeros are holes or not. */
int lm_ram_hash(const struct lm_ram *ram, uint8_t ret[static 16], struct lm_error *err);

#endif
