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

static void traffic(enum cli_side side, const struct lm_summary *s, FILE *to)
{
	char a[32];

	if (!strcmp(s->transport, "image")) {
		row(to, side == CLI_SIDE_RESTORE ? "read" : "written", cli_bytes_format(s->bytes, a, sizeof(a)));
		fprintf(to, " of memory by %u threads\n", s->lanes);
		return;
	}

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

void cli_summary_postcopy(const struct lm_postcopy_stats *p, FILE *to)
{
	char a[32], b[32], c[32], d[32];

	if (!p->used)
		return;
	row(to, "post-copy", cli_bytes_format(p->left_pages * 4096, a, sizeof(a)));
	fprintf(to, " left behind at the switchover, %s fetched in %s\n", cli_bytes_format(p->bytes, b, sizeof(b)),
		cli_time_format(p->duration_ns, c, sizeof(c)));
	row(to, "", "");
	if (p->faults)
		fprintf(to, "%llu fault%s: median %s, 99 %% within %s, longest %s;\n%15sthe guest's threads waited %s in all\n",
			(unsigned long long)p->faults, p->faults == 1 ? "" : "s",
			cli_time_format(p->fault_p50_ns, a, sizeof(a)), cli_time_format(p->fault_p99_ns, b, sizeof(b)),
			cli_time_format(p->fault_max_ns, c, sizeof(c)), "",
			cli_time_format(p->waited_ns, d, sizeof(d)));
	else
		fprintf(to, "the guest never waited for a page\n");
	if (p->recoveries) {
		row(to, "", "");
		fprintf(to, "the other host was lost and found again %u time%s\n", p->recoveries,
			p->recoveries == 1 ? "" : "s");
	}
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
	if (s->rounds || !s->postcopy.used) {
		traffic(side, s, to);
		speed(s, to);
	}
	cli_summary_blackout(&s->blackout, to);
	cli_summary_postcopy(&s->postcopy, to);
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
	case LM_OUTCOME_INTERRUPTED:
		return "INTERRUPTED";
	default:
		return "given up";
	}
}

static void where_is_the_guest(enum cli_side side, const struct lm_summary *s, const struct cli_place *place, FILE *to)
{
	const char *peer = place->peer;
	char clean[512];

	if (side == CLI_SIDE_SAVE)
		fprintf(to, "the guest is saved in %s; here it is paused for good\n",
			cli_text_clean(place->image, clean, sizeof(clean)));
	else if (side == CLI_SIDE_SEND)
		fprintf(to, "the guest has moved to %s\n", cli_text_clean(peer ? peer : "?", clean, sizeof(clean)));
	else
		fprintf(to, "%s\n", s->guest_runs_here ? "the guest runs on this host" :
			"the guest is on this host, paused");
}

/* "--qmp SOCKET" or "--pid PID", as it was given. */
static const char *guest_words(const struct cli_place *place, char *buf, size_t size)
{
	char clean[512];

	if (!(place->qmp && *place->qmp) && place->pid)
		snprintf(buf, size, "--pid %d", place->pid);
	else
		snprintf(buf, size, "--qmp %s", cli_text_clean(place->qmp && *place->qmp ? place->qmp : "SOCKET",
							       clean, sizeof(clean)));
	return buf;
}

static void recover_words(enum cli_side side, const struct cli_place *place, FILE *to)
{
	const char *here = side == CLI_SIDE_SEND ? "--to" : "--listen";
	const char *there = side == CLI_SIDE_SEND ? "--listen" : "--to";
	const char *address = place->address && *place->address ? place->address : "ADDRESS:PORT";
	const char *insecure = place->insecure ? " --insecure" : "";
	char guest[544], clean[256];

	fprintf(to, "  migrate-rdma recover %s %s %s%s\n", guest_words(place, guest, sizeof(guest)), here,
		cli_text_clean(address, clean, sizeof(clean)), insecure);
	fprintf(to, "and on the other\n  migrate-rdma recover --qmp SOCKET %s ADDRESS:PORT%s\n", there, insecure);
}

static void interrupted(enum cli_side side, const struct lm_summary *s, const struct cli_place *place, FILE *to)
{
	char missing[32];

	if (side == CLI_SIDE_SEND)
		fprintf(to, "The guest runs on the destination and needs pages that are only here");
	else
		fprintf(to, "The guest runs here and needs pages that are only on the source");
	if (s->postcopy.missing_pages)
		fprintf(to, " (%s)", cli_bytes_format(s->postcopy.missing_pages * 4096, missing, sizeof(missing)));
	fprintf(to, ".\nIt waits where it touches one. To end the QEMU of either host, or to reboot it, loses the guest.\n"
		"When the hosts reach each other again, on this host\n");
	recover_words(side, place, to);
}

static void in_doubt(enum cli_side side, const struct lm_summary *s, const struct cli_place *place, FILE *to)
{
	char guest[544];

	guest_words(place, guest, sizeof(guest));
	if (side == CLI_SIDE_SEND)
		fprintf(to, "The other host was told to run the guest and did not answer; the guest is paused "
			"here.\nFind out whether it runs there. Then, on this host,\n");
	else
		fprintf(to, "The guest has arrived, but it is not known which host is to run it.\n"
			"Find out whether it runs on the source. Then, on this host,\n");
	if (side == CLI_SIDE_SEND && s->postcopy.left_pages) {
		fprintf(to, "when it runs there, it needs pages that are only here: do not end this QEMU, but go on with\n");
		recover_words(side, place, to);
		fprintf(to, "when it does not and never will,\n  migrate-rdma resolve %s --run-here\n", guest);
		return;
	}
	fprintf(to, "  migrate-rdma resolve %s --end-here   when it runs there, or\n"
		"  migrate-rdma resolve %s --run-here   when it does not and never will.\n", guest, guest);
}

/* The same of a guest and its image. */
static void advice_image(enum cli_side side, const struct lm_summary *s, const struct cli_place *place, FILE *to)
{
	char guest[544], clean[512];

	guest_words(place, guest, sizeof(guest));
	cli_text_clean(place->image, clean, sizeof(clean));
	if (s->outcome == LM_OUTCOME_INTERRUPTED)
		fprintf(to, "The guest runs here and waits where it touches memory that was not read yet. When the image can be "
			"read again,\n  migrate-rdma restore --resume --image %s %s\n", clean, guest);
	else if (s->outcome == LM_OUTCOME_IN_DOUBT)
		fprintf(to, "The guest is paused here. It may run here again only when nobody can restore %s:\nremove it, then"
			"\n  migrate-rdma resolve %s --run-here\n", clean, guest);
	else if (s->outcome == LM_OUTCOME_VM_LOST)
		fprintf(to, "The QEMU of this host has ended or does not answer; its own log says why.\n");
	else if (s->outcome == LM_OUTCOME_REFUSED)
		fprintf(to, "Nothing was touched.\n");
	else
		fprintf(to, side == CLI_SIDE_SAVE ? "The guest is on this host as before.\n" : "The image is as it was.\n");
}

/* What is true and what to do after a migration that was not completed. */
static void advice(enum cli_side side, const struct lm_summary *s, const struct cli_place *place, FILE *to)
{
	switch (s->outcome) {
	case LM_OUTCOME_IN_DOUBT:
		in_doubt(side, s, place, to);
		return;
	case LM_OUTCOME_INTERRUPTED:
		interrupted(side, s, place, to);
		return;
	case LM_OUTCOME_VM_LOST:
		fprintf(to, "The QEMU of this host has ended or does not answer; its own log says why.\n");
		return;
	case LM_OUTCOME_REFUSED:
		fprintf(to, "Nothing was touched.%s\n", side == CLI_SIDE_SEND ? " The guest is as it was." : "");
		return;
	case LM_OUTCOME_STALLED:
		fprintf(to, "The guest is on the source as before. It writes faster than pages can be sent: allow "
			"more with --max-downtime,\nuse more --lanes or a faster network, --on-stall force, or --postcopy auto.\n");
		return;
	default:
		if (place->postcopy)
			fprintf(to, "The guest has been switched over to the destination. Do not end the QEMU of either "
				"host before it is\nknown that every page is there.\n");
		else
			fprintf(to, side == CLI_SIDE_SEND ? "The guest is on this host as before.\n" :
				"The guest is on the source as before.\n");
	}
}

void cli_summary_verdict(enum cli_side side, const struct lm_summary *s, const struct cli_place *place, FILE *to)
{
	char clean[LM_ERROR_MSG_MAX];

	fprintf(to, "%s: ", first_word(s->outcome));
	if (s->outcome == LM_OUTCOME_COMPLETED) {
		where_is_the_guest(side, s, place, to);
		return;
	}
	cli_text_clean(s->error.msg, clean, sizeof(clean));
	if (strcmp(clean, "cancelled"))
		fprintf(to, "%s\n", *clean ? clean : "no reason was given");
	else
		fprintf(to, "as asked\n");
	if (side == CLI_SIDE_SAVE || side == CLI_SIDE_RESTORE)
		advice_image(side, s, place, to);
	else
		advice(side, s, place, to);
}
