/* SPDX-License-Identifier: Apache-2.0 */
/* A live migration at the source. */
#ifndef LM_SESSION_SOURCE_H
#define LM_SESSION_SOURCE_H

#include "engine/postcopy/postcopy.h"
#include "engine/precopy/precopy.h"
#include "engine/switchover/outgoing.h"

struct lm_source {
	struct lm_ctx *c;
	struct lm_precopy precopy;
	struct lm_postcopy_source postcopy;
	struct lm_outgoing out;
};

/* All of these outlive src. */
void lm_source_init(struct lm_source *src, struct lm_ctx *c, struct lm_guardian *guardian, struct lm_handover *handover);
int lm_source_run(struct lm_source *src, struct lm_error *err);
void lm_source_fini(struct lm_source *src); /* takes a zeroed one */

/* switchover.c: from PREPARE to RESUMED, or to the last page that post-copy left behind. */
int lm_source_switchover(struct lm_source *src, struct lm_error *err);

#endif
