/* SPDX-License-Identifier: Apache-2.0 */
/* A logical unit in memory with paths that can die, lose answers, and lie. */
#ifndef SCSI_DOUBLE_H
#define SCSI_DOUBLE_H

#include "storage/scsi_path.h"

#define UNIT_NEXUSES 64

struct unit {
	uint32_t generation;
	struct { uint64_t key; unsigned attentions; } nexus[UNIT_NEXUSES];
	unsigned nnexuses;
	int holder;         /* nexus, -1: none */
	uint8_t type;
	unsigned resets, aborts, refusals;
	/* what it says that it can do; else it does not know that question */
	bool says, says_abort, says_aptpl;
	uint8_t says_types;

	/* what it does wrong */
	bool no_abort, no_aptpl;
	unsigned attentions; /* queued at every nexus by every change */
	bool lies;           /* PREEMPT is answered with GOOD and not done */
	int die_at;          /* its commands are counted; the path of this one dies (-1: never) ... */
	bool die_after;      /* ... after it was done, else before */
	int count;
};

void unit_init(struct unit *u);
/* A path for a host; it is not connected yet. */
struct lm_scsi_path *unit_path(struct unit *u, const char *name);
/* Whether a WRITE through the path would be done. */
bool unit_writes(struct unit *u, struct lm_scsi_path *p);
/* A path that is dead for ever, until this. */
void unit_mend(struct lm_scsi_path *p);

#endif
