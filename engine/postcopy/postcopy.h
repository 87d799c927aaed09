/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Post-copy: the guest runs at the destination while pages of it are still at the source.
 *
 * The source names the pages that stay behind, keeps its RAM as it is, and answers.  It decides nothing: the
 * destination chooses what is fetched when, so the source has nothing to remember but the secret.
 * The destination answers the guest's faults from the moment at which all pages that stay behind are named,
 * and fetches the rest in the background.  From COMMIT to the last page the guest needs both hosts; a cut
 * network, or the death of an engine, only interrupts it.
 *
 * Session's thread, except where a lane's thread is named.
 */
#ifndef LM_POSTCOPY_H
#define LM_POSTCOPY_H

#include <stdatomic.h>
#include "engine/base/pageset.h"
#include "engine/context/context.h"
#include "engine/transport/comeback.h"
#include "puller.h"
#include "state.h"

/* What both sides have. */
struct lm_postcopy_both {
	struct lm_ctx *c;
	bool armed;               /* POSTCOPY was sent / answered: the switchover will leave pages behind */
	struct lm_transport *transport; /* owned; NULL: there is no connection */
	struct lm_comeback comeback;    /* of its lanes */
	struct lm_pcstate state;
	uint8_t secret[LM_TOKEN_SIZE];
	unsigned nlanes;          /* of the background; one more is for faults */
	uint64_t max_bytes_per_s;
	int64_t began_ns;         /* COMMIT */
	int64_t last_event_ns;
	uint64_t failed_told;     /* a bit per lane whose failure the user was told of */
};

struct lm_postcopy_source {
	struct lm_postcopy_both both;
	int64_t last_ping_ns;
	struct lm_pool *pool;     /* answers on all lanes */
	_Atomic bool stop;
	_Atomic unsigned ended;   /* lanes that answer no more, for whatever reason */
	_Atomic uint64_t failed;  /* a bit per lane whose thread has left an error, written before */
	struct lm_error *lane_errors;
	bool whole;               /* the destination has said that it has every page */
	struct lm_pageset told;   /* pages that were named as left */
	struct lm_pageset scratch; /* pages of one kind, while they are named */
};

struct lm_postcopy_dest {
	struct lm_postcopy_both both;
	bool allowed;             /* both sides agree that it may be */
	bool bound, known;        /* the lanes can be used; all that is left was named */
	struct lm_pager *pager;
	struct lm_puller puller;
	uint64_t last_bytes;
	uint64_t gone;            /* a bit per lane that failed and is not back */
	struct lm_pageset watched, to_show; /* pages that may have to be shown, and room for some of them */
	unsigned show_region;     /* up to here they have been */
	uint64_t show_page;
};

/* ---- source ---- */

/*
 * Before PREPARE: the destination gets ready, the lanes for fetching are opened, and what is dirty (holes:
 * of dirty, zero) is named as left behind.  Both sets are empty afterwards.
 */
int lm_postcopy_prepare(struct lm_postcopy_source *p, struct lm_pageset *dirty, struct lm_pageset *holes,
			struct lm_error *err);
/* The guest has stopped and was scanned: the rest that is left behind.  *ret_pages: all of it. */
int lm_postcopy_leave(struct lm_postcopy_source *p, struct lm_pageset *dirty, struct lm_pageset *holes, bool last,
		      uint64_t *ret_pages, struct lm_error *err);
/* Note how far the switchover is, for an engine that goes on after our death.  Does nothing when not armed. */
void lm_postcopy_note_commit(struct lm_postcopy_source *p, enum lm_pccommit committed);
/* After COMMIT: answer until the destination has every page; when the destination is lost, try to reach it again. */
int lm_postcopy_serve(struct lm_postcopy_source *p, struct lm_error *err);
/* After COMMIT without an answer: 0 when the destination came back for its pages, so the guest runs there. */
int lm_postcopy_find(struct lm_postcopy_source *p, struct lm_error *err);
/* A post-copy whose engine died: both.state was taken over. */
void lm_postcopy_source_take_over(struct lm_postcopy_source *p);
/* keep: somebody may have to go on with it. */
void lm_postcopy_source_end(struct lm_postcopy_source *p, bool keep);

/* ---- destination ---- */

/* Handlers of POSTCOPY, POSTCOPY_KEYS and LEFT, before the guest runs. */
int lm_postcopy_arm(struct lm_postcopy_dest *p, const struct lm_msg *msg, struct lm_error *err);
int lm_postcopy_keys(struct lm_postcopy_dest *p, const struct lm_msg *msg, struct lm_error *err);
int lm_postcopy_left(struct lm_postcopy_dest *p, const struct lm_msg *msg, struct lm_error *err);
/* Once the guest runs: until every page is here. */
int lm_postcopy_pull(struct lm_postcopy_dest *p, struct lm_error *err);
/* The same out of an image: pager, state file and puller are made, then it is all fetched. */
int lm_postcopy_arm_here(struct lm_postcopy_dest *p, struct lm_error *err);
int lm_postcopy_pull_image(struct lm_postcopy_dest *p, struct lm_error *err);
/* A post-copy whose engine died: both.state and pager were taken over. */
int lm_postcopy_dest_take_over(struct lm_postcopy_dest *p, struct lm_error *err);
/*
 * keep: the guest may need the pager, so it stays in the VM until every page is there.  Otherwise
 * the pager is taken out of the VM, unless the VM has begun to load.
 */
void lm_postcopy_dest_end(struct lm_postcopy_dest *p, bool keep, bool load_begun);

#endif
