/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of scsi-pr share: the handle, and steps that several operations are made
 * of.  scsi_pr.c has the rules.  All calls block until their deadline at the most.
 */
#ifndef LM_SCSI_STATE_H
#define LM_SCSI_STATE_H

#include "scsi_pr.h"

#define PR_TRIES 8 /* of a whole operation, when others change the reservation meanwhile */

struct scsi_pr {
	struct lm_lock lock;
	struct lm_scsi_pr_options options;
	struct lm_scsi_path *paths[LM_SCSI_PATHS_MAX];
	unsigned npaths;
	char host[LM_LOCK_HOST_MAX];
	uint64_t key;        /* what path->registered is about; 0: none */
	uint32_t generation; /* the last one seen: going back means that the target forgot */
	struct lm_pr_view seen; /* the last view */
	uint8_t id[LM_LOCK_ID_SIZE];
	bool doubt;          /* a registration may have been lost without a message: make it again */
	bool in_flight;      /* of whom the reservation was preempted: commands may be, until it is aborted or reset */
	uint64_t breaking;   /* the holder that a break is about, and nobody else */
	bool asked;          /* what the target says that it can do */
	bool no_abort, no_aptpl; /* what this target cannot, or refused */
};

static inline struct scsi_pr *pr_of(struct lm_lock *l)
{
	return (struct scsi_pr *)l;
}

/* --- scsi_keys.c: what is in a key --- */

uint32_t pr_host_part(const char *host); /* 24 bits of a hash of its name */
bool pr_key_is_lm(uint64_t key);
uint32_t pr_key_host(uint64_t key);      /* the same of the host whose key it is */
uint64_t pr_key_epoch(uint64_t key);
bool pr_key_of_host(uint64_t key, const char *host);
/* The number for the next change of the holder: more than this handle and the keys on the target know. */
uint64_t pr_epoch_next(const struct scsi_pr *s, const struct lm_pr_view *v);
uint64_t pr_epoch_seen(const struct lm_pr_view *v); /* 0: none */
int pr_epoch_valid(uint64_t epoch, struct lm_error *err);
bool pr_type_ours(const struct lm_pr_view *v);
/* `code`, with who holds the reservation as its text. */
int pr_held_by(const struct scsi_pr *s, const struct lm_pr_view *v, int code, struct lm_error *err);

/* --- scsi_reg.c: paths, and registrations through them --- */

/* Find paths that were added or removed, and try those that are down once more; at least one must be up. */
int pr_revive(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err);
/* The same without those that failed before: inside the blackout, where a dead path would cost seconds. */
int pr_join(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err);
/* The first path that is up, one with a registration if there is any; NULL: none. */
struct lm_scsi_path *pr_best(const struct scsi_pr *s);
/* Keys and reservation, through whatever path works. */
int pr_view(struct scsi_pr *s, struct lm_pr_view *v, int64_t deadline_ns, struct lm_error *err);
/* REGISTER in one of its two ways through one path; key 0 unregisters. */
int pr_reg(struct scsi_pr *s, struct lm_scsi_path *p, enum lm_pr_out how, uint64_t old, uint64_t key,
	   int64_t deadline_ns, struct lm_error *err);
/*
 * This host holds the reservation with s->key, says v.  When the target knows that key of
 * fewer nexuses than we do, somebody removed one: then all are registered again.
 */
int pr_reg_again(struct scsi_pr *s, const struct lm_pr_view *v, int64_t deadline_ns, struct lm_error *err);
/*
 * Put the key on a path of which it is not known whether it is registered, and with which key.  A
 * key of another program is not replaced: -EPERM.
 */
int pr_reg_new(struct scsi_pr *s, struct lm_scsi_path *p, uint64_t key, int64_t deadline_ns, struct lm_error *err);
/* Put the key on all paths that are up.  A path that does not take it is no error as long as another one does. */
int pr_reg_all(struct scsi_pr *s, uint64_t key, int64_t deadline_ns, struct lm_error *err);
/* Remove all registrations of this handle, except through path keep (NULL: no exception). */
void pr_withdraw_but(struct scsi_pr *s, const struct lm_scsi_path *keep, int64_t deadline_ns);
void pr_withdraw(struct scsi_pr *s, int64_t deadline_ns);
/* Remove keys of this program but for `keep`; p is registered with that one and holds the reservation. */
int pr_purge(struct scsi_pr *s, struct lm_scsi_path *p, const struct lm_pr_view *v, uint64_t keep,
	     int64_t deadline_ns, struct lm_error *err);
/*
 * PREEMPT of key `other` by `key`.  Unless nothing of its host is known to be in flight, by PREEMPT AND
 * ABORT, or s->in_flight stays set: then pr_settle() has to end what is in flight.
 */
int pr_preempt(struct scsi_pr *s, struct lm_scsi_path *p, uint64_t key, uint64_t other, bool disks_idle,
	       int64_t deadline_ns, struct lm_error *err);

/* LOGICAL UNIT RESET, if that is still needed. */
int pr_settle(struct scsi_pr *s, int64_t deadline_ns, struct lm_error *err);

/* --- scsi_hold.c --- */

/*
 * Become the holder with `key`, in place of the reservation that `old` holds (a key of this host,
 * or one that may be taken), or of none (0).  0 when READ RESERVATION shows that; -EBUSY: another
 * host was first.
 */
int pr_become(struct scsi_pr *s, uint64_t key, uint64_t old, bool disks_idle, int64_t deadline_ns,
	      struct lm_error *err);
/* The result of an operation that was tried several times: -EAGAIN becomes -ETIMEDOUT. */
int pr_given_up(int r, struct lm_error *err);

/* --- scsi_release.c, scsi_show.c: members of lm_lock_ops --- */

int pr_release(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err);
int pr_break(struct lm_lock *l, int64_t deadline_ns, struct lm_error *err);
int pr_show(struct lm_lock *l, struct lm_lock_info *ret, int64_t deadline_ns, struct lm_error *err);

#endif
