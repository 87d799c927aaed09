/* SPDX-License-Identifier: Apache-2.0 */
/*
 * migrate_rdma.h - public API of libmigrate-rdma
 *
 * One session moves one running guest.  The source host opens a session with
 * lm_source_open(), the destination host with lm_dest_open(); both then call
 * lm_session_run(), which blocks until the guest has moved, the migration was
 * given up (the guest then still runs on the source), or it ended in doubt.
 *
 * Threads: a session belongs to the thread that runs it.  Only
 * lm_session_cancel() may be called from another thread or from a signal
 * handler.  Callbacks are called from the thread that runs the session.
 *
 * Errors: functions return 0 or a negative errno value and fill the caller's
 * struct lm_error.  The library never prints and never exits; log lines and
 * progress come through the event callback.
 *
 * Units are in the names: _ns nanoseconds, _bytes bytes, _pages pages of 4 KiB.
 * This header compiles as C11 and as C++17.
 */
#ifndef MIGRATE_RDMA_H
#define MIGRATE_RDMA_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LM_API __attribute__((visibility("default")))

/* How far an error reaches, which decides what the engine does about it. */
enum lm_scope {
	LM_SCOPE_OPERATION, /* this call failed, nothing else is hurt: may be retried */
	LM_SCOPE_LANE,      /* one lane is dead: its unconfirmed runs go out on another */
	LM_SCOPE_SESSION,   /* the migration is given up, the guest stays on the source */
	LM_SCOPE_VM,        /* the guest itself is gone or unreachable */
};

#define LM_ERROR_MSG_MAX 512

/* Owned by the caller.  The function that finds the fault fills it; msg says what to do. */
struct lm_error {
	int code; /* negative errno, 0 when unset */
	enum lm_scope scope;
	char msg[LM_ERROR_MSG_MAX];
};

enum lm_log_level { LM_LOG_ERROR, LM_LOG_WARN, LM_LOG_INFO, LM_LOG_DEBUG };

/* How a session ended: the value of lm_summary.outcome. */
enum lm_outcome {
	LM_OUTCOME_NONE,      /* it has not ended */
	LM_OUTCOME_COMPLETED, /* the guest runs (or is paused, as it was) on the destination */
	LM_OUTCOME_REFUSED,   /* refused before anything was touched */
	LM_OUTCOME_ABORTED,   /* given up: the guest is on the source as before */
	LM_OUTCOME_CANCELLED, /* the same, by lm_session_cancel() */
	LM_OUTCOME_STALLED,   /* the same, because pre-copy did not converge (on_stall abort) */
	LM_OUTCOME_IN_DOUBT,  /* COMMIT was sent and no answer came: see resolve */
	LM_OUTCOME_VM_LOST,   /* the guest's QEMU died */
	/*
	 * Post-copy lost its peer and could not reach it again within recover_timeout_ns.  The
	 * guest runs on the destination and waits there when it touches a page that is missing; go
	 * on with lm_recover_open() on both sides.
	 */
	LM_OUTCOME_INTERRUPTED,
};

/*
 * Post-copy: the guest is switched over while pages are still missing.  They follow while it runs,
 * and the pages that it touches come first.  From the switchover to the last page the guest needs
 * both hosts: losing one of them, or the destination's memory, loses the guest.
 */
enum lm_postcopy {
	LM_POSTCOPY_AUTO,  /* when another round of pre-copy gains too little (hybrid), or after postcopy_after_* */
	LM_POSTCOPY_NEVER,
	LM_POSTCOPY_NOW,   /* at once, without a round of pre-copy */
};

enum lm_on_stall { LM_STALL_WAIT, LM_STALL_FORCE, LM_STALL_ABORT };

enum lm_event_type {
	LM_EVENT_LOG,        /* .log */
	LM_EVENT_LISTENING,  /* .listening: the destination waits for its peer */
	LM_EVENT_OPENED,     /* .opened: both sides agreed, copying begins */
	LM_EVENT_PROGRESS,   /* .progress: a few times a second while copying */
	LM_EVENT_ROUND,      /* .round: one pre-copy round has ended */
	LM_EVENT_DECISION,   /* .decision: go on, switch over, force or abort, and why */
	LM_EVENT_POSTCOPY,   /* .postcopy: a few times a second while pages are missing */
	LM_EVENT_STAGE,      /* .stage: the session entered a named stage */
	LM_EVENT_LANE,       /* .lane: a lane was lost, or is back */
	LM_EVENT_COMPLETED,  /* .summary: last event of a session, whatever its outcome */
};

/* One pre-copy round.  round 0 is the pass over all of the memory that exists. */
struct lm_round {
	unsigned round;
	uint64_t dirty_pages;      /* found by the scan that began the round */
	uint64_t sent_pages;       /* went out as data */
	uint64_t zero_pages;       /* went out as an explicit zero */
	uint64_t skipped_pages;    /* zero here and known to be zero there */
	uint64_t bytes;            /* data bytes on the lanes */
	int64_t scan_ns, drain_ns, copy_ns;
	uint64_t dirty_pages_per_s; /* measured since the scan before */
	uint64_t bytes_per_s;       /* throughput of the copy */
};

enum lm_decision_kind {
	LM_DECIDE_CONTINUE, LM_DECIDE_SWITCHOVER, LM_DECIDE_FORCE, LM_DECIDE_ABORT, LM_DECIDE_POSTCOPY,
};

struct lm_decision {
	enum lm_decision_kind kind;
	unsigned round;
	int64_t predicted_ns;    /* last scan and last copy, were the guest stopped now */
	int64_t max_downtime_ns;
	char reason[160];
};

/* How much of the guest's memory is registered with RDMA devices, and when. */
enum lm_pin {
	LM_PIN_AUTO,  /* depends on the device, the memlock limit and how much of the memory exists */
	LM_PIN_ALL,   /* all at once, before the copy begins */
	LM_PIN_CHUNK, /* only what exists, in large chunks, ahead of the copy */
	LM_PIN_ODP,   /* on demand, by the device (On-Demand Paging) */
};

struct lm_progress {
	unsigned round;
	uint64_t total_pages;     /* pages that exist in the guest's memory */
	uint64_t done_pages;      /* of this round */
	uint64_t round_pages;
	uint64_t bytes;           /* data bytes since the session opened */
	uint64_t bytes_per_s;     /* over the last interval */
};

/* What the blackout was made of.  All are durations on one host's clock. */
struct lm_blackout {
	int64_t total_ns;        /* guest stopped on the source until it runs on the destination */
	int64_t stop_ns;         /* guest stopped until its disks were drained and flushed */
	int64_t last_scan_ns;
	int64_t last_copy_ns;    /* last copy and its confirmation by the destination */
	int64_t lock_ns;         /* storage locks offered and taken (0: no lock) */
	int64_t device_state_ns; /* QEMU saves, sends and loads its device state */
	int64_t resume_ns;       /* COMMIT until the guest runs on the destination */
	uint64_t last_pages;     /* pages in the last copy */
	uint64_t device_state_bytes;
	/* The parts of lock_ns.  While locks are offered the destination loads the device state. */
	int64_t lock_offer_ns, lock_take_ns;
};

/* What post-copy did so far. */
struct lm_postcopy_stats {
	bool used;
	uint64_t left_pages;      /* left behind at the switchover */
	uint64_t missing_pages;   /* of them, not there yet */
	uint64_t bytes;           /* data bytes that were fetched */
	uint64_t faults;          /* times that a thread of the guest waited for a missing page */
	int64_t fault_p50_ns, fault_p99_ns, fault_max_ns; /* of these waits, as the engine saw them */
	int64_t waited_ns;        /* their sum over all threads */
	int64_t duration_ns;      /* COMMIT until the last page was there */
	unsigned recoveries;      /* times that the peer was lost and found again */
};

struct lm_summary {
	enum lm_outcome outcome;
	struct lm_error error;    /* code 0 when the outcome is COMPLETED */
	char transport[16];
	unsigned lanes, rounds;
	uint64_t ram_bytes;       /* size of the guest's memory */
	uint64_t existing_pages;  /* of it, pages that held data at the start */
	uint64_t sent_pages, zero_pages, skipped_pages;
	uint64_t bytes;           /* data bytes on all lanes */
	uint64_t bytes_per_s;     /* over the time in which lanes were copying */
	int64_t total_ns;         /* session opened until it ended */
	int64_t copying_ns;
	int64_t cpu_ns;           /* user and system time of this process during the session */
	bool guest_runs_here;     /* known to run on this host when the session ended */
	struct lm_blackout blackout;
	struct lm_postcopy_stats postcopy;
};

struct lm_event {
	enum lm_event_type type;
	int64_t time_ns; /* CLOCK_REALTIME */
	union {
		struct { enum lm_log_level level; const char *text; } log;
		struct { const char *address; } listening;
		struct { const char *transport; unsigned lanes; uint64_t ram_bytes; const char *peer; } opened;
		struct lm_progress progress;
		struct lm_round round;
		struct lm_decision decision;
		struct lm_postcopy_stats postcopy;
		struct { const char *name; } stage;
		struct { unsigned lane, live; bool back; const char *why; } lane; /* live: lanes that work; why: it was lost */
		struct lm_summary summary;
	} u;
};

/* Strings in an event live until the callback returns. */
typedef void lm_event_fn(void *opaque, const struct lm_event *event);

/*
 * Options of a session.  Start from lm_options_default(); strings stay owned by
 * the caller and must live as long as the session.
 */
struct lm_options {
	/* The guest */
	const char *qmp;        /* path of the QMP socket */
	int32_t pid;            /* of QEMU; 0: found by SO_PEERCRED */

	/* The peer.  "HOST:PORT", "[V6]:PORT"; port 0 at the destination: any free one */
	const char *address;
	bool insecure;          /* allow addresses that are not loopback without TLS */

	/*
	 * The transport: "auto" (the first of lm_transport_names() that both sides can
	 * use towards each other) or one of these names
	 */
	const char *transport;
	const char *const *rails; /* RDMA devices, "DEV[:PORT[:GID]]"; nrails 0: all that reach the peer */
	unsigned nrails;
	enum lm_pin pin;
	unsigned lanes;         /* 0: choose by the number of CPUs */
	uint64_t max_bandwidth_bytes_per_s; /* 0: none */

	/* Convergence (source) */
	int64_t max_downtime_ns;
	enum lm_on_stall on_stall;
	int64_t timeout_ns;     /* for all that comes before the switchover; 0: none */
	enum lm_postcopy postcopy; /* destination: anything but NEVER allows it */
	unsigned postcopy_after_rounds; /* LM_POSTCOPY_AUTO: at the latest after so many rounds; 0: no limit */
	int64_t postcopy_after_ns;      /* ... or so long after the session opened; 0: no limit */
	int64_t recover_timeout_ns; /* how long to look for a peer that was lost in post-copy */
	int64_t max_pause_ns;   /* the guest is never paused for longer before COMMIT */

	/* Liveness */
	int64_t peer_timeout_ns; /* a peer that is silent for this long is gone */
	int64_t qmp_timeout_ns;  /* a QEMU that does not answer for this long is gone */

	/*
	 * Storage locks of the guest's disks, as URIs ("Storage locks" below): the same
	 * ones in the same order on both sides.  nlocks 0: none.
	 */
	const char *const *locks;
	unsigned nlocks;        /* at most LM_LOCKS_MAX */
	const char *lock_host;  /* this host's name in them; NULL: the default */
	/* Images (lm_save_open, lm_restore_open) */
	const char *image;      /* path */
	bool lazy;              /* restore: run the guest at once, read its memory when it is touched */
	bool force_locks;       /* restore: also when somebody has held the locks since */
	bool again;             /* restore: also an image that has run, or whose guest went on */

	bool guardian;          /* source: fork the guardian that undoes a pause if we are killed */
	bool start_paused;      /* destination: do not run the guest, leave it paused */
	bool verify;            /* compare a hash of all RAM inside the blackout (long!) */

	lm_event_fn *event;
	void *event_opaque;
	enum lm_log_level log_level; /* log events above this level are not made */
};

#define LM_LOCKS_MAX 16

struct lm_session;

LM_API void lm_options_default(struct lm_options *ret_options);

/*
 * Check the options, attach to the guest, and refuse it with a reason when it
 * cannot be migrated safely.  Nothing is changed yet.  The destination also
 * binds its listening socket (event LISTENING, lm_session_address()).
 * The session is owned by the caller: lm_session_free().
 */
LM_API int lm_source_open(const struct lm_options *options, struct lm_session **ret_session,
			  struct lm_error *err);
LM_API int lm_dest_open(const struct lm_options *options, struct lm_session **ret_session,
			struct lm_error *err);

/*
 * Save the guest to options->image.  The guest is stopped and written, and stays paused here for
 * good (COMPLETED).  After a failure the guest goes on, and an older image of that name is
 * untouched.  The image can be restored once.
 */
LM_API int lm_save_open(const struct lm_options *options, struct lm_session **ret_session,
			struct lm_error *err);
/* Run the guest of options->image in a QEMU that waits (-incoming defer -S). */
LM_API int lm_restore_open(const struct lm_options *options, struct lm_session **ret_session,
			   struct lm_error *err);
/*
 * Go on with a lazy restore whose engine died or could not read the image
 * (LM_OUTCOME_INTERRUPTED): needs qmp or pid, and image.
 */
LM_API int lm_restore_resume(const struct lm_options *options, struct lm_session **ret_session,
			     struct lm_error *err);

/*
 * Go on with a post-copy that lost its peer (LM_OUTCOME_INTERRUPTED) or whose engine died.  The
 * other host has to make the same call.  Needs qmp or pid, and address: the destination listens
 * there, the source connects to it.  The session is then run like any other.
 */
LM_API int lm_recover_open(const struct lm_options *options, bool destination,
			   struct lm_session **ret_session, struct lm_error *err);

/*
 * Migrate.  Blocks until the end; the outcome is in lm_session_summary().
 * Returns 0 when the outcome is LM_OUTCOME_COMPLETED, else a negative errno.
 */
LM_API int lm_session_run(struct lm_session *session, struct lm_error *err);

/*
 * Ask a running session to stop.  Before COMMIT the guest goes on at the source.  After COMMIT the
 * request has no effect, with one exception: a session that tries to reach a peer which post-copy
 * has lost gives up (LM_OUTCOME_INTERRUPTED). Async-signal-safe; any thread.
 */
LM_API void lm_session_cancel(struct lm_session *session);

/*
 * Ask a running session at the source to switch over to post-copy now, without waiting for further
 * rounds.  No effect after the switchover, or with LM_POSTCOPY_NEVER.  Async-signal-safe; any
 * thread.
 */
LM_API void lm_session_postcopy(struct lm_session *session);

/* Address that the destination listens on, "HOST:PORT".  Owned by the session. */
LM_API const char *lm_session_address(const struct lm_session *session);
/* The process of the guest's QEMU on this host. */
LM_API int32_t lm_session_pid(const struct lm_session *session);
LM_API const struct lm_summary *lm_session_summary(const struct lm_session *session);

/* Takes NULL.  Never stops or kills a guest. */
LM_API void lm_session_free(struct lm_session *session);

LM_API const char *lm_outcome_name(enum lm_outcome outcome);
LM_API const char *lm_version(void);

/* NULL-terminated, static. */
LM_API const char *const *lm_transport_names(void);

/* One line of `migrate-rdma check`. */
enum lm_check_status { LM_CHECK_OK, LM_CHECK_WARN, LM_CHECK_FAIL, LM_CHECK_ABSENT };
struct lm_check {
	enum lm_check_status status;
	const char *name;
	char found[192];  /* what is there */
	char advice[384]; /* what to do about it; empty when OK */
};
typedef void lm_check_fn(void *opaque, const struct lm_check *check);

/* What this host can do.  Returns the number of lines with LM_CHECK_FAIL. */
LM_API int lm_check_host(lm_check_fn *fn, void *opaque);

/*
 * What the transport of this name finds on this host (devices, ports, limits); no line when it
 * needs nothing.  lm_check_host() has the same lines.  0 or -ENOENT.
 */
LM_API int lm_check_transport(const char *name, lm_check_fn *fn, void *opaque);

/*
 * Whether the guest behind this QMP socket can be migrated; pid 0: found by itself.
 * Changes nothing.  Returns the number of LM_CHECK_FAIL lines, or a negative
 * errno (err filled) when the guest could not be asked.
 */
LM_API int lm_check_guest(const char *qmp, int32_t pid, lm_check_fn *fn, void *opaque,
			  struct lm_error *err);

/*
 * After an outcome of IN_DOUBT, on either host: what a person (or a cluster
 * manager) has decided.  LM_RESOLVE_SHOW changes nothing.
 */
enum lm_resolve {
	LM_RESOLVE_SHOW,
	LM_RESOLVE_RUN_HERE,
	LM_RESOLVE_END_HERE,
	LM_RESOLVE_AUTO, /* with locks: run it here if this host gets all of them; needs no person */
};
LM_API int lm_resolve(const char *qmp, enum lm_resolve what, char *ret_text, size_t text_size,
		      struct lm_error *err);
/*
 * The same with the guest's storage locks, in the order of lm_options.locks.  RUN_HERE and
 * AUTO run the guest only when this host holds all of them: -EBUSY when another host
 * has one.  END_HERE is refused (-EPERM) while this host holds the first.
 */
LM_API int lm_resolve_locked(const char *qmp, enum lm_resolve what, const char *const *locks, unsigned nlocks,
			     const char *lock_host, char *ret_text, size_t text_size, struct lm_error *err);

/*
 * Storage locks (`migrate-rdma lock`): who may write to a guest's disks.  URIs are
 * SCHEME:REST; lm_lock_schemes() is NULL-terminated and static.
 */
enum lm_lock_holder {
	LM_LOCK_FREE,
	LM_LOCK_HELD_HERE,      /* by this host */
	LM_LOCK_HELD_ELSEWHERE, /* by another host, alive or not */
	LM_LOCK_IN_HANDOVER,    /* offered: holder or next may get it, nobody else */
	LM_LOCK_FOREIGN,        /* something that is not of this program holds it */
	LM_LOCK_DAMAGED,        /* unreadable: counts as held */
};

struct lm_lock_info {
	enum lm_lock_holder state;
	char holder[64];  /* host; empty when there is none */
	char next[64];    /* LM_LOCK_IN_HANDOVER: whom it was offered to */
	uint64_t epoch;   /* 0: not known */
	bool in_use;      /* a living process on some host holds it right now, as far as can be seen */
	char text[2048];  /* all that is known, in lines for a person */
};

enum lm_lock_what {
	LM_LOCK_SHOW,    /* changes nothing */
	LM_LOCK_ACQUIRE, /* for this host, when nobody else holds it */
	LM_LOCK_RELEASE, /* what this host holds */
	LM_LOCK_BREAK,   /* what a host holds that is known to be dead, else two hosts write */
};

/*
 * Do it and fill *ret with the lock's state afterwards.  host: this host's name, NULL for the
 * default.  Blocks at most timeout_ns (0: 10 s).  Any thread.
 */
LM_API int lm_lock_run(const char *uri, const char *host, enum lm_lock_what what, int64_t timeout_ns,
		       struct lm_lock_info *ret, struct lm_error *err);
LM_API const char *lm_lock_state_name(enum lm_lock_holder state);
LM_API const char *const *lm_lock_schemes(void);

#ifdef __cplusplus
}
#endif
#endif
