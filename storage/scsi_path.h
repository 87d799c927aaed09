/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One path to a SCSI logical unit: an I_T nexus that takes commands one at a time.
 * Transports: libiscsi (scsi_iscsi.c), SG_IO (scsi_sg.c); tests have one that lies.
 */
#ifndef LM_SCSI_PATH_H
#define LM_SCSI_PATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "engine/base/error.h"

#define LM_SCSI_PATHS_MAX 16
#define LM_SCSI_PATH_NAME_MAX 128

enum lm_scsi_data { LM_SCSI_NO_DATA, LM_SCSI_DATA_IN, LM_SCSI_DATA_OUT };

struct lm_scsi_cmd {
	uint8_t cdb[16];
	unsigned cdb_len;
	enum lm_scsi_data direction;
	uint8_t *data;
	size_t len;
	/* the answer */
	size_t got;
	uint8_t status;    /* as in SAM: 0 GOOD, 2 CHECK CONDITION, 0x18 RESERVATION CONFLICT */
	uint8_t sense_key;
	uint16_t asc;      /* code and qualifier: 0x2a03 */
};

struct lm_scsi_path;

struct lm_scsi_path_ops {
	/* Connect, or connect again; the nexus is a new one then. */
	int (*connect)(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err);
	/* 0 when the target answered, whatever it said.  Else the path is dead until connect. */
	int (*exec)(struct lm_scsi_path *p, struct lm_scsi_cmd *cmd, int64_t deadline_ns, struct lm_error *err);
	/* Whether the connected unit is still there, as far as that can be seen without a command.  NULL: yes. */
	bool (*alive)(struct lm_scsi_path *p);
	/* LOGICAL UNIT RESET: 0 when the target has done it. */
	int (*reset)(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err);
	void (*close)(struct lm_scsi_path *p);
};

/* A transport embeds this first. */
struct lm_scsi_path {
	const struct lm_scsi_path_ops *ops;
	char name[LM_SCSI_PATH_NAME_MAX];
	bool up;
	bool failed;     /* connect has failed, or the path died; false: it was not tried yet */
	bool registered; /* as far as is known: by us, through this nexus */
};

/*
 * The wrappers.  exec answers unit attentions and BUSY by trying again (a bounded
 * number of times), so that what comes back is the answer to the command:
 *   0           GOOD
 *   -EBUSY      RESERVATION CONFLICT
 *   -EOPNOTSUPP the target does not know the command or one of its fields
 *   -EIO        anything else that it said; the path is up
 *   -ENOLINK    no answer: the path is down, and whether the command was done is not known
 */
int lm_scsi_connect(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err);
int lm_scsi_exec(struct lm_scsi_path *p, struct lm_scsi_cmd *cmd, int64_t deadline_ns, struct lm_error *err);
int lm_scsi_reset(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err);
void lm_scsi_close(struct lm_scsi_path *p); /* takes NULL */

/* What is needed of SPC.  Big-endian numbers are converted. */
enum lm_pr_out {
	LM_PR_REGISTER = 0, LM_PR_RESERVE = 1, LM_PR_RELEASE = 2, LM_PR_CLEAR = 3, LM_PR_PREEMPT = 4,
	LM_PR_PREEMPT_ABORT = 5, LM_PR_REGISTER_IGNORE = 6,
};
#define LM_PR_KEYS_MAX 128

struct lm_pr_view {
	uint32_t generation;
	unsigned nkeys;      /* with repetitions: one per registered nexus */
	uint64_t keys[LM_PR_KEYS_MAX];
	bool held;
	uint64_t holder;     /* key; 0 for all-registrants types */
	uint8_t type;
};

/* What a target says that it can do.  Where it says nothing, the value is "unknown". */
struct lm_pr_abilities {
	bool types_known; /* types is about all of them */
	uint16_t types;   /* bit n: reservations of type n */
	bool aptpl_known, aptpl;
	bool abort_known, abort; /* PREEMPT AND ABORT */
};

/* REPORT CAPABILITIES and REPORT SUPPORTED OPERATION CODES; a target that knows neither is no error. */
int lm_pr_abilities(struct lm_scsi_path *p, struct lm_pr_abilities *ret, int64_t deadline_ns, struct lm_error *err);
int lm_pr_out(struct lm_scsi_path *p, enum lm_pr_out action, uint8_t type, uint64_t key, uint64_t other,
	      bool aptpl, int64_t deadline_ns, struct lm_error *err);
/* Keys and reservation of one generation: what was true at one moment. */
int lm_pr_view(struct lm_scsi_path *p, struct lm_pr_view *ret, int64_t deadline_ns, struct lm_error *err);
/* A hash of the names that the logical unit has, equal through all paths. */
int lm_scsi_identity(struct lm_scsi_path *p, uint8_t ret[static 32], int64_t deadline_ns, struct lm_error *err);

/*
 * Make the paths of a URI, not connected.  rest is without options.  initiator may
 * be NULL.  On error nothing is left.
 */
int lm_scsi_iscsi_paths(const char *rest, const char *host, const char *initiator,
			struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *ret_n,
			struct lm_error *err);
int lm_scsi_sg_paths(const char *device, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX],
		     unsigned *ret_n, struct lm_error *err);

#endif
