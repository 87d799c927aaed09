/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "phase.h"
#include "units.h"

#define SILENCE_NS INT64_C(2000000000) /* ten events are overdue: the peer may be lost */

void cli_phase_init(struct cli_phase *ret, bool recovering)
{
	*ret = (struct cli_phase){ .recovering = recovering, .committed = recovering, .postcopy = recovering };
}

static void stage(struct cli_phase *p, enum cli_side side, const char *name, int64_t now_ns)
{
	static const char *const commits[] = {
		[CLI_SIDE_SEND] = "committed", [CLI_SIDE_RECEIVE] = "commit", [CLI_SIDE_SAVE] = "renamed",
		[CLI_SIDE_RESTORE] = "marked",
	};

	if (!strcmp(name, commits[side]))
		p->committed = true;
	if (!strcmp(name, "whole"))
		p->whole = true;
	if (strcmp(name, "postcopy") && strcmp(name, "recovered"))
		return;
	p->committed = p->postcopy = true;
	if (!p->recovering || !strcmp(name, "recovered"))
		p->heard_ns = now_ns;
}

void cli_phase_event(struct cli_phase *p, enum cli_side side, const struct lm_event *e, int64_t now_ns)
{
	if (e->type == LM_EVENT_STAGE)
		stage(p, side, e->u.stage.name, now_ns);
	if (e->type != LM_EVENT_POSTCOPY)
		return;
	p->committed = p->postcopy = true;
	p->missing_pages = e->u.postcopy.missing_pages;
	p->heard_ns = now_ns;
}

static void cancel(const struct cli_phase *p, int64_t now_ns, char *buf, size_t size)
{
	char missing[32] = "";

	if (p->whole) {
		snprintf(buf, size, "the guest has moved and every page is there: there is nothing to cancel");
	} else if (p->postcopy && now_ns - p->heard_ns > SILENCE_NS) {
		snprintf(buf, size, "the guest is on the destination: this cannot be undone; if the other host is lost, this "
		         "program no longer tries to reach it: go on with 'migrate-rdma recover'");
	} else if (p->postcopy) {
		if (p->missing_pages)
			cli_bytes_format(p->missing_pages * 4096, missing, sizeof(missing));
		snprintf(buf, size, "the guest runs on the destination and needs both hosts until its last page is there: "
			 "this cannot be cancelled any more%s%s%s", *missing ? " (" : "", missing,
			 *missing ? " are missing)" : "");
	} else if (p->committed) {
		snprintf(buf, size, "the destination has been told to run the guest: this cannot be cancelled any more");
	} else {
		snprintf(buf, size, "stopping; the guest goes on on the source");
	}
}

/* There is no other host in it. */
static void cancel_image(const struct cli_phase *p, enum cli_side side, char *buf, size_t size)
{
	if (p->committed)
		snprintf(buf, size, side == CLI_SIDE_SAVE ? "the guest is saved: this cannot be cancelled any more" :
			 "the guest runs: this cannot be cancelled any more");
	else
		snprintf(buf, size, side == CLI_SIDE_SAVE ? "stopping; the guest goes on" : "stopping; the image stays as it was");
}

char *cli_phase_answer(const struct cli_phase *p, enum cli_side side, enum cli_ask ask,
		       const struct lm_options *options, int64_t now_ns, char *buf, size_t size)
{
	if (ask == CLI_ASK_CANCEL && (side == CLI_SIDE_SAVE || side == CLI_SIDE_RESTORE))
		cancel_image(p, side, buf, size);
	else if (ask == CLI_ASK_CANCEL)
		cancel(p, now_ns, buf, size);
	else if (p->committed)
		snprintf(buf, size, "post-copy was asked for, but the guest has been switched over already");
	else if (side == CLI_SIDE_RECEIVE)
		snprintf(buf, size, "post-copy was asked for, but that is up to the source");
	else if (options->postcopy == LM_POSTCOPY_NEVER)
		snprintf(buf, size, "post-copy was asked for, but --postcopy never refuses it");
	else
		snprintf(buf, size, "post-copy was asked for: switching over as soon as that is possible");
	return buf;
}
