/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "summary.h"
#include "text.h"
#include "units.h"

enum cli_exit cli_exit_code(enum lm_outcome outcome)
{
	switch (outcome) {
	case LM_OUTCOME_COMPLETED:
		return CLI_EXIT_OK;
	case LM_OUTCOME_REFUSED:
		return CLI_EXIT_REFUSED;
	case LM_OUTCOME_CANCELLED:
		return CLI_EXIT_CANCELLED;
	case LM_OUTCOME_STALLED:
		return CLI_EXIT_STALLED;
	case LM_OUTCOME_IN_DOUBT:
		return CLI_EXIT_IN_DOUBT;
	case LM_OUTCOME_VM_LOST:
		return CLI_EXIT_VM_LOST;
	case LM_OUTCOME_INTERRUPTED:
		return CLI_EXIT_INTERRUPTED;
	case LM_OUTCOME_NONE:
	case LM_OUTCOME_ABORTED:
		break;
	}
	return CLI_EXIT_ABORTED;
}

static void row(FILE *to, const char *name, const char *value)
{
	fprintf(to, "  %-13s%s", name, value);
}

static void traffic(const struct lm_summary *s, FILE *to)
{
	char a[32];

	row(to, "data", cli_bytes_format(s->bytes, a, sizeof(a)));
	fprintf(to, " in %u round%s over %u %s lane%s\n", s->rounds, s->rounds == 1 ? "" : "s", s->lanes,
		s->transport, s->lanes == 1 ? "" : "s");
	row(to, "pages", "");
	fprintf(to, "%llu sent, %llu as zero, %llu skipped\n", (unsigned long long)s->sent_pages,
		(unsigned long long)s->zero_pages, (unsigned long long)s->skipped_pages);
}

static void speed(const struct lm_summary *s, FILE *to)
{
	double gib = (double)s->bytes / (1 << 30);
	char a[32];

	row(to, "throughput", cli_rate_format(s->bytes_per_s, a, sizeof(a)));
	fprintf(to, " (%.2f Gbit/s)\n", (double)s->bytes_per_s * 8 / 1e9);
	row(to, "CPU", cli_time_format(s->cpu_ns, a, sizeof(a)));
	if (gib > 0.001)
		fprintf(to, " of this process (%.2f s per GiB)\n", (double)s->cpu_ns / 1e9 / gib);
	else
		fprintf(to, " of this process\n");
}

void cli_summary_blackout(const struct lm_blackout *b, FILE *to)
{
	const struct { const char *name; int64_t ns; } parts[] = {
		{ "stop", b->stop_ns },
		{ "last scan", b->last_scan_ns },
		{ "last copy", b->last_copy_ns },
		{ "locks", b->lock_ns },
		{ "device state", b->device_state_ns },
		{ "resume", b->resume_ns },
	};
	int64_t rest = b->total_ns;
	const char *sign = "=";
	char a[32];

	if (b->total_ns <= 0)
		return;
	fprintf(to, "  blackout %.1f ms", (double)b->total_ns / 1e6);
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (parts[i].ns <= 0)
			continue;
		fprintf(to, " %s %s %.1f", sign, parts[i].name, (double)parts[i].ns / 1e6);
		rest -= parts[i].ns;
		sign = "+";
	}
	if (rest >= 50000 && *sign == '+')
		fprintf(to, " + other %.1f", (double)rest / 1e6);
	fprintf(to, "\n           (%llu page%s in the last copy, %s of device state)\n",
		(unsigned long long)b->last_pages, b->last_pages == 1 ? "" : "s",
		cli_bytes_format(b->device_state_bytes, a, sizeof(a)));
}

void cli_summary_table(enum cli_side side, const struct lm_summary *s, FILE *to)
{
	char a[32];

	row(to, "total time", cli_time_format(s->total_ns, a, sizeof(a)));
	if (side == CLI_SIDE_SEND)
		fprintf(to, " (copying %s)", cli_time_format(s->copying_ns, a, sizeof(a)));
	fputc('\n', to);
	if (s->ram_bytes) {
		row(to, "memory", cli_bytes_format(s->ram_bytes, a, sizeof(a)));
		if (s->existing_pages)
			fprintf(to, ", of which %s in use",
				cli_bytes_format(s->existing_pages * 4096, a, sizeof(a)));
		fputc('\n', to);
	}
	traffic(s, to);
	speed(s, to);
	cli_summary_blackout(&s->blackout, to);
}

static const char *first_word(enum lm_outcome outcome)
{
	switch (outcome) {
	case LM_OUTCOME_COMPLETED:
		return "completed";
	case LM_OUTCOME_REFUSED:
		return "refused";
	case LM_OUTCOME_CANCELLED:
		return "cancelled";
	case LM_OUTCOME_STALLED:
		return "stalled";
	case LM_OUTCOME_IN_DOUBT:
		return "IN DOUBT";
	case LM_OUTCOME_VM_LOST:
		return "guest lost";
	default:
		return "given up";
	}
}

static void where_is_the_guest(enum cli_side side, const struct lm_summary *s, const char *peer, FILE *to)
{
	char clean[256];

	if (side == CLI_SIDE_SEND)
		fprintf(to, "the guest has moved to %s\n", cli_text_clean(peer ? peer : "?", clean, sizeof(clean)));
	else
		fprintf(to, "%s\n", s->guest_runs_here ? "the guest runs on this host" :
			"the guest is on this host, paused");
}

static void in_doubt(enum cli_side side, const char *qmp, FILE *to)
{
	char clean[512];

	cli_text_clean(qmp && *qmp ? qmp : "SOCKET", clean, sizeof(clean));
	if (side == CLI_SIDE_SEND)
		fprintf(to, "The other host was told to run the guest and did not answer; the guest is paused "
			"here.\nFind out whether it runs there. Then, on this host,\n");
	else
		fprintf(to, "The guest has arrived, but it is not known which host is to run it.\n"
			"Find out whether it runs on the source. Then, on this host,\n");
	fprintf(to, "  migrate-rdma resolve --qmp %s --end-here   when it runs there, or\n"
		"  migrate-rdma resolve --qmp %s --run-here   when it does not and never will.\n", clean, clean);
}

/* What is true and what to do after a migration that was not completed. */
static void advice(enum cli_side side, const struct lm_summary *s, const char *qmp, FILE *to)
{
	switch (s->outcome) {
	case LM_OUTCOME_IN_DOUBT:
		in_doubt(side, qmp, to);
		return;
	case LM_OUTCOME_VM_LOST:
		fprintf(to, "The QEMU of this host has ended or does not answer; its own log says why.\n");
		return;
	case LM_OUTCOME_REFUSED:
		fprintf(to, "Nothing was touched.%s\n", side == CLI_SIDE_SEND ? " The guest is as it was." : "");
		return;
	case LM_OUTCOME_STALLED:
		fprintf(to, "The guest is on the source as before. It writes faster than pages can be sent: allow "
			"more with --max-downtime,\nuse more --lanes or a faster network, or --on-stall force.\n");
		return;
	default:
		fprintf(to, side == CLI_SIDE_SEND ? "The guest is on this host as before.\n" :
			"The guest is on the source as before.\n");
	}
}

void cli_summary_verdict(enum cli_side side, const struct lm_summary *s, const char *peer, const char *qmp,
			 FILE *to)
{
	char clean[LM_ERROR_MSG_MAX];

	fprintf(to, "%s: ", first_word(s->outcome));
	if (s->outcome == LM_OUTCOME_COMPLETED) {
		where_is_the_guest(side, s, peer, to);
		return;
	}
	cli_text_clean(s->error.msg, clean, sizeof(clean));
	if (strcmp(clean, "cancelled"))
		fprintf(to, "%s\n", *clean ? clean : "no reason was given");
	else
		fprintf(to, "as asked\n");
	advice(side, s, qmp, to);
}
