/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Storage locks: which host may write to a guest's disks.
 *
 * The holder is a host, by name, and not a process: a lock that was acquired stays
 * with its host until it is released, taken over or broken, whatever happens to the
 * process that acquired it.  No lock expires by a timer into somebody else's hands
 * (sanlock is the exception that its own watchdog makes safe: storage/README.md).
 *
 * A hand-over, with the calls of both sides in their order:
 *
 *   source                                    destination
 *   (holds it)
 *   announce  ---- note ------------------->  prepare         while the guest runs
 *             <--- answer ------------------
 *   offer     ---- note ------------------->                  guest stopped, disks drained and flushed
 *                                             take            the only step that must be in the blackout
 *   (reclaim, when the other side did not take it)
 *
 * Rules that every backend keeps and tests/contract checks:
 *  1. At most one host may write.  In doubt, none: a lock whose state cannot be
 *     read, or that was left by a host which is silent, is held.
 *  2. Between offer and take nobody but these two hosts can get the lock.  take and
 *     reclaim exclude each other by an atomic step of the storage itself, so that
 *     exactly one of them succeeds, in whatever order and however late they come.
 *  3. The epoch grows with every change of the owner and with every reclaim of an
 *     offer that was out, and never shrinks.  take and reclaim return 0 only after the
 *     storage has shown that this host holds the lock with the epoch they return.
 *  4. All calls may be made again after a crash of their caller, by a new process on
 *     the same host, and end where they would have ended.  Each backend's
 *     table of kill points is in storage/README.md.
 *  5. Nothing is ever done to what another program holds there.
 *
 * Threads: a lock belongs to one thread at a time.  Different locks are independent.
 * Blocking: every call but close may block for I/O until its deadline; file systems
 * that hang in the kernel hang the caller.  When a deadline passes inside a call
 * that changes the lock, the change may have been made or not (-ETIMEDOUT): call it
 * again, or ask with show.
 * Errors: -EBUSY another host holds it; -ESTALE the note is not about the lock as it
 * is now; -EPERM not ours to give; -EUCLEAN what lies there is damaged; -ENOTSUP
 * this cannot work here (the text says why); -EMEDIUMTYPE both sides do not see the
 * same storage.
 */
#ifndef LM_LOCK_H
#define LM_LOCK_H

#include <stdbool.h>
#include <stdint.h>
#include "engine/base/error.h"

#define LM_LOCK_URI_MAX  1024
#define LM_LOCK_HOST_MAX 64  /* bytes of a host's name, with the 0 */
#define LM_LOCK_ID_SIZE  32  /* which piece of storage this is; equal on all hosts */
#define LM_LOCK_NOTE_SIZE 256 /* what travels to the peer, always all of it */
#define LM_LOCK_SCHEME_MAX 16

enum lm_lock_note_kind {
	LM_NOTE_ANNOUNCE = 1, /* source: this is the lock, this is its holder */
	LM_NOTE_ANSWER,       /* destination: I see the same lock, this is my name */
	LM_NOTE_OFFER,        /* source: you may take it now */
};

/* A decoded note.  A backend uses host, epoch, id and what it puts into detail. */
struct lm_lock_note {
	enum lm_lock_note_kind kind;
	bool disks_idle;               /* nothing of the source is in flight, and nothing will be sent */
	char scheme[LM_LOCK_SCHEME_MAX];
	char host[LM_LOCK_HOST_MAX];   /* who wrote the note */
	uint64_t epoch;                /* of the lock when it was written */
	uint8_t id[LM_LOCK_ID_SIZE];
	uint64_t detail;               /* the backend's own */
};

enum lm_lock_state {
	LM_LOCK_NONE,     /* this handle claims nothing */
	LM_LOCK_PREPARED, /* ready to take */
	LM_LOCK_OWNED,    /* this host may write */
	LM_LOCK_OFFERED,  /* this host may not write any more; the peer may take it */
};

struct lm_lock_params {
	const char *host;    /* this host's name; NULL: lm_lock_host() */
	int32_t holder_pid;  /* process that may keep the lock's descriptor (keep_fd); 0: none */
	int64_t deadline_ns; /* for open */
};

struct lm_lock;

struct lm_lock_ops {
	const char *name;
	/*
	 * Become the owner, if this host holds it already (a process died), has offered it and
	 * nobody took it (reclaim), or was offered it; and, if free_too, if it is free.  Sets
	 * l->epoch.  -EBUSY when another host holds it, lm_lock_is_free() when it is free and must
	 * not be.
	 */
	int (*acquire)(struct lm_lock *l, bool free_too, int64_t deadline_ns, struct lm_error *err);
	/*
	 * OWNED.  note->kind is ANNOUNCE (nothing changes; fill id and detail) or OFFER
	 * (answer is the peer's: from here on only it or this host can get the lock).
	 */
	int (*offer)(struct lm_lock *l, const struct lm_lock_note *answer, struct lm_lock_note *note,
		     int64_t deadline_ns, struct lm_error *err);
	/*
	 * Not OWNED: prepare everything that take would otherwise have to do, and prove that this
	 * is the source's storage.  Fill answer's id and detail.
	 */
	int (*prepare)(struct lm_lock *l, const struct lm_lock_note *announce, struct lm_lock_note *answer,
		       int64_t deadline_ns, struct lm_error *err);
	/* Own it, if it is still as in the note.  Sets l->epoch. */
	int (*take)(struct lm_lock *l, const struct lm_lock_note *offer, int64_t deadline_ns,
		    struct lm_error *err);
	/* This host holds it: make it free.  Already free: 0.  Held by another: -EPERM. */
	int (*release)(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err);
	/* Changes nothing and disturbs nobody. */
	int (*show)(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err);
	/*
	 * Make it free although another host holds it.  The caller knows that the other host is
	 * dead.  If the storage shows that it lives, the storage is believed and not the caller
	 * (-EBUSY).
	 */
	int (*break_)(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err);
	/* Undo prepare; free the handle.  Who holds the lock does not change. */
	void (*close)(struct lm_lock *l);
};

/* A backend embeds this first. */
struct lm_lock {
	const struct lm_lock_ops *ops;
	char uri[LM_LOCK_URI_MAX];
	char host[LM_LOCK_HOST_MAX];
	enum lm_lock_state state;  /* the wrappers set it */
	uint64_t epoch;            /* when OWNED or OFFERED */
	/*
	 * A descriptor that shall stay open as long as the guest runs, in whatever process
	 * lives that long, or -1.  It is the handle's.  See "lease" in storage/README.md.
	 */
	int keep_fd;
	char remark[512];          /* by the last call, although it worked: what a person should know; or "" */
};

/* One scheme of URIs. */
struct lm_lock_backend {
	const char *scheme;
	const char *what;    /* one line for people: what follows the colon, and what it is */
	const char *missing; /* why open is NULL */
	/* rest: the URI behind the colon.  host and uri of *ret are filled by the wrapper. */
	int (*open)(const char *rest, const struct lm_lock_params *p, struct lm_lock **ret,
		    struct lm_error *err);
};

/* Ends with a NULL scheme.  The engine does not know what is in it: ../storage does. */
extern const struct lm_lock_backend lm_lock_backends[];

/* The only way to call a backend: state, arguments and notes are checked here. */

/* Reads only what is needed to know that this can work here.  Owned: lm_lock_close(). */
int lm_lock_open(const char *uri, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err);
int lm_lock_acquire(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err);
int lm_lock_announce(struct lm_lock *l, uint8_t ret_note[static LM_LOCK_NOTE_SIZE], int64_t deadline_ns,
		     struct lm_error *err);
int lm_lock_prepare(struct lm_lock *l, const uint8_t note[static LM_LOCK_NOTE_SIZE],
		    uint8_t ret_answer[static LM_LOCK_NOTE_SIZE], int64_t deadline_ns, struct lm_error *err);
/*
 * From here on this host must not write, whatever happens.  disks_idle: the caller knows that the
 * storage has answered all writes of this host.
 */
int lm_lock_offer(struct lm_lock *l, const uint8_t answer[static LM_LOCK_NOTE_SIZE], bool disks_idle,
		  uint8_t ret_note[static LM_LOCK_NOTE_SIZE], int64_t deadline_ns, struct lm_error *err);
/* Returns 0 when this host holds it now, with the epoch in *ret_epoch (may be NULL). */
int lm_lock_take(struct lm_lock *l, const uint8_t note[static LM_LOCK_NOTE_SIZE], uint64_t *ret_epoch,
		 int64_t deadline_ns, struct lm_error *err);
/*
 * After lm_lock_offer(), also in a new process: 0 when this host holds it again and
 * the note that is out is worth nothing any more; -EBUSY when the peer has taken it.
 * A lock that is free is refused with -ESTALE: the peer may have taken it, run the guest to
 * its end and released it, and what this host has of the guest is old.  free_too: the
 * caller knows that the guest never ran there.
 */
int lm_lock_reclaim(struct lm_lock *l, bool free_too, int64_t deadline_ns, struct lm_error *err);
int lm_lock_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err);
int lm_lock_query(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err);
int lm_lock_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err);
void lm_lock_close(struct lm_lock *l); /* takes NULL */

/* For backends */

/* The default name of this host: "NODENAME.xxxxxxxx", the latter from /etc/machine-id. */
void lm_lock_host(char ret[static LM_LOCK_HOST_MAX]);
/* The first epoch of a lock whose storage remembers none: grows with time, by one in 64 seconds. */
uint64_t lm_lock_epoch_first(void);
/* -ESTALE, for acquire. */
int lm_lock_is_free(struct lm_error *err);
void lm_lock_remark(struct lm_lock *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Add a line to info->text; what does not fit is left out. */
void lm_lock_say(struct lm_lock_info *info, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Letters, digits, '.', '-', '_', and not empty: safe in a file, on a terminal and in a SCSI name. */
bool lm_lock_name_valid(const char *name);
/*
 * "?KEY=VALUE&KEY=VALUE" at the end of rest: cut it off and find a key.  Value into
 * buf; false when it is not there.  lm_lock_options_known: -EINVAL for any other key.
 */
bool lm_lock_option(const char *options, const char *key, char *buf, size_t size);
int lm_lock_options_known(const char *options, const char *const *keys, struct lm_error *err);

/* The codec of notes; hostile input gives -EPROTO. */
void lm_lock_note_put(const struct lm_lock_note *note, uint8_t ret[static LM_LOCK_NOTE_SIZE]);
int lm_lock_note_get(const uint8_t bytes[static LM_LOCK_NOTE_SIZE], struct lm_lock_note *ret,
		     struct lm_error *err);

#endif
