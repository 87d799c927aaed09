/* SPDX-License-Identifier: Apache-2.0 */
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "scsi_double.h"

struct double_path {
	struct lm_scsi_path path;
	struct unit *unit;
	int nexus;   /* -1: not connected */
	bool broken; /* connect fails */
};

static struct double_path *double_of(struct lm_scsi_path *p)
{
	return (struct double_path *)p;
}

void unit_init(struct unit *u)
{
	memset(u, 0, sizeof(*u));
	u->holder = u->die_at = -1;
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static void put64(uint8_t *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof(v));
}

static void put32(uint8_t *p, uint32_t v)
{
	v = htobe32(v);
	memcpy(p, &v, sizeof(v));
}

static void changed(struct unit *u, int by)
{
	u->generation++;
	for (unsigned i = 0; i < u->nnexuses; i++)
		if ((int)i != by)
			u->nexus[i].attentions += u->attentions;
}

static void unregister(struct unit *u, int n)
{
	u->nexus[n].key = 0;
	if (u->holder == n)
		u->holder = -1;
}

/* The status. */
static uint8_t preempt(struct unit *u, int n, uint8_t type, uint64_t other)
{
	bool takes = u->holder >= 0 && u->nexus[u->holder].key == other;
	unsigned found = 0;

	if (u->lies)
		return 0;
	for (unsigned i = 0; i < u->nnexuses; i++)
		found += u->nexus[i].key == other;
	if (!found || !other)
		return 0x18;
	for (unsigned i = 0; i < u->nnexuses; i++)
		if (u->nexus[i].key == other && (int)i != n)
			unregister(u, (int)i);
	if (takes) {
		u->holder = n;
		u->type = type;
	}
	changed(u, n);
	return 0;
}

static uint8_t pr_out(struct unit *u, int n, struct lm_scsi_cmd *cmd)
{
	uint64_t key = get64(cmd->data), other = get64(cmd->data + 8);
	uint8_t action = cmd->cdb[1] & 0x1f, type = cmd->cdb[2] & 0xf;

	if ((action == 5 && u->no_abort) || (cmd->data[20] & 1 && u->no_aptpl)) {
		cmd->sense_key = 5;
		cmd->asc = 0x2400;
		u->refusals++;
		return 2;
	}
	if (action != 6 && (action || u->nexus[n].key || key) && u->nexus[n].key != key)
		return 0x18;
	switch (action) {
	case 0:
	case 6:
		if (other)
			u->nexus[n].key = other;
		else
			unregister(u, n);
		changed(u, n);
		return 0;
	case 1:
		if (u->holder >= 0 && u->holder != n)
			return 0x18;
		u->holder = n;
		u->type = type;
		return 0;
	case 2:
		if (u->holder == n)
			u->holder = -1;
		return 0;
	default:
		u->aborts += action == 5;
		return preempt(u, n, type, other);
	}
}

static void pr_in(struct unit *u, struct lm_scsi_cmd *cmd)
{
	uint32_t len = 0;

	memset(cmd->data, 0, cmd->len);
	put32(cmd->data, u->generation);
	if (!cmd->cdb[1]) {
		for (unsigned i = 0; i < u->nnexuses; i++) {
			if (!u->nexus[i].key)
				continue;
			put64(cmd->data + 8 + len, u->nexus[i].key);
			len += 8;
		}
	} else if (u->holder >= 0) {
		len = 16;
		put64(cmd->data + 8, u->nexus[u->holder].key);
		cmd->data[21] = u->type;
	}
	put32(cmd->data + 4, len);
	cmd->got = 8 + len;
}

/* REPORT CAPABILITIES, or of REPORT SUPPORTED OPERATION CODES what is asked for. */
static void says(const struct unit *u, struct lm_scsi_cmd *cmd)
{
	if (!u->says) {
		cmd->status = 2;
		cmd->sense_key = 5;
		return;
	}
	memset(cmd->data, 0, cmd->len);
	cmd->got = 8;
	if (cmd->cdb[0] == 0xa3) {
		cmd->data[1] = u->says_abort ? 3 : 1;
		return;
	}
	cmd->data[1] = 8;
	cmd->data[2] = u->says_aptpl;
	cmd->data[3] = 0x80;
	cmd->data[4] = u->says_types;
}

static void execute(struct unit *u, int n, struct lm_scsi_cmd *cmd)
{
	static const uint8_t name[] = { 0, 0x83, 0, 8, 1, 3, 0, 4, 'u', 'n', 'i', 't' };

	if (u->nexus[n].attentions && cmd->cdb[0] != 0x12) {
		u->nexus[n].attentions--;
		cmd->status = 2;
		cmd->sense_key = 6;
		cmd->asc = 0x2a03;
		return;
	}
	switch (cmd->cdb[0]) {
	case 0x5f:
		cmd->status = pr_out(u, n, cmd);
		break;
	case 0x5e:
		if (cmd->cdb[1] == 2)
			says(u, cmd);
		else
			pr_in(u, cmd);
		break;
	case 0xa3:
		says(u, cmd);
		break;
	case 0x12:
		memcpy(cmd->data, name, sizeof(name));
		cmd->got = sizeof(name);
		break;
	default:
		cmd->status = 2;
		cmd->sense_key = 5;
	}
}

static int double_exec(struct lm_scsi_path *p, struct lm_scsi_cmd *cmd, int64_t deadline_ns, struct lm_error *err)
{
	struct double_path *d = double_of(p);
	bool dies = d->unit->count++ == d->unit->die_at;

	(void)deadline_ns;
	if (d->nexus < 0)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "dead");
	if (!dies || d->unit->die_after)
		execute(d->unit, d->nexus, cmd);
	if (!dies)
		return 0;
	d->nexus = -1;
	d->broken = true;
	return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "died");
}

static int double_connect(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	struct double_path *d = double_of(p);

	(void)deadline_ns;
	if (d->broken || d->unit->nnexuses == UNIT_NEXUSES)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "%s is dead", p->name);
	d->nexus = (int)d->unit->nnexuses++;
	d->unit->nexus[d->nexus].attentions = 1;
	return 0;
}

static int double_reset(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	struct double_path *d = double_of(p);

	(void)deadline_ns;
	if (d->nexus < 0)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "dead");
	d->unit->resets++;
	for (unsigned i = 0; i < d->unit->nnexuses; i++)
		d->unit->nexus[i].attentions++;
	return 0;
}

static void double_close(struct lm_scsi_path *p)
{
	free(p);
}

static const struct lm_scsi_path_ops double_ops = {
	.connect = double_connect, .exec = double_exec, .reset = double_reset, .close = double_close,
};

struct lm_scsi_path *unit_path(struct unit *u, const char *name)
{
	struct double_path *d = calloc(1, sizeof(*d));

	d->path.ops = &double_ops;
	d->unit = u;
	d->nexus = -1;
	snprintf(d->path.name, sizeof(d->path.name), "%s", name);
	return &d->path;
}

bool unit_writes(struct unit *u, struct lm_scsi_path *p)
{
	struct double_path *d = double_of(p);

	return d->nexus >= 0 && (u->holder < 0 || u->nexus[d->nexus].key);
}

void unit_mend(struct lm_scsi_path *p)
{
	double_of(p)->broken = false;
}
