/* SPDX-License-Identifier: Apache-2.0 */
#include <endian.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include "engine/base/clock.h"
#include "scsi_path.h"

#define ATTENTIONS_MAX 100  /* unit attentions in a row: one per event and nexus is queued */
#define BUSY_SLEEP_US 2000
#define VIEW_TRIES 20

enum { GOOD = 0, CHECK = 2, BUSY = 8, CONFLICT = 0x18, TASK_SET_FULL = 0x28 };
enum { KEY_ILLEGAL = 5, KEY_ATTENTION = 6 };

int lm_scsi_connect(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	int r = p->ops->connect(p, deadline_ns, err);

	p->up = !r;
	p->failed = r;
	p->registered = false;
	return r;
}

/* A path or a target that hangs gets half of what is left of the time: the rest is for the others. */
static int64_t share(int64_t deadline_ns)
{
	int64_t now = lm_now_ns();

	return deadline_ns == LM_NO_DEADLINE || deadline_ns <= now ? deadline_ns : now + (deadline_ns - now) / 2;
}

static int once(struct lm_scsi_path *p, struct lm_scsi_cmd *cmd, int64_t deadline_ns, struct lm_error *err)
{
	struct lm_error why = { 0 };

	cmd->got = 0;
	cmd->status = cmd->sense_key = 0;
	cmd->asc = 0;
	if (p->up && !p->ops->exec(p, cmd, share(deadline_ns), &why))
		return 0;
	p->up = false;
	p->failed = true;
	return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "path %s: %s", p->name, *why.msg ? why.msg : "is down");
}

static bool try_again(const struct lm_scsi_cmd *cmd, unsigned tries, int64_t deadline_ns)
{
	if (lm_now_ns() > deadline_ns)
		return false;
	if (cmd->status == CHECK && cmd->sense_key == KEY_ATTENTION)
		return tries < ATTENTIONS_MAX;
	if (cmd->status != BUSY && cmd->status != TASK_SET_FULL)
		return false;
	usleep(BUSY_SLEEP_US);
	return true;
}

int lm_scsi_exec(struct lm_scsi_path *p, struct lm_scsi_cmd *cmd, int64_t deadline_ns, struct lm_error *err)
{
	unsigned tries = 0;
	int r;

	do
		r = once(p, cmd, deadline_ns, err);
	while (!r && try_again(cmd, tries++, deadline_ns));
	if (r || cmd->status == GOOD)
		return r;
	if (cmd->status == CONFLICT)
		return lm_err(err, -EBUSY, LM_SCOPE_OPERATION, "path %s: reservation conflict", p->name);
	if (cmd->status == CHECK && cmd->sense_key == KEY_ILLEGAL)
		return lm_err(err, -EOPNOTSUPP, LM_SCOPE_OPERATION, "path %s: the target refuses command %02x/%02x "
			      "(sense 5/%04x)", p->name, cmd->cdb[0], cmd->cdb[1], cmd->asc);
	return lm_err(err, -EIO, LM_SCOPE_OPERATION, "path %s: command %02x/%02x: status %02x, sense %x/%04x", p->name,
		      cmd->cdb[0], cmd->cdb[1], cmd->status, cmd->sense_key, cmd->asc);
}

int lm_scsi_reset(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	int r = p->up ? p->ops->reset(p, share(deadline_ns), err) : -ENOLINK;

	if (r == -ENOLINK) {
		p->up = false;
		p->failed = true;
	}
	return r;
}

void lm_scsi_close(struct lm_scsi_path *p)
{
	if (p)
		p->ops->close(p);
}

static uint64_t be64_get(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static uint32_t be32_get(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static void be64_put(uint8_t *p, uint64_t v)
{
	v = htobe64(v);
	memcpy(p, &v, sizeof(v));
}

int lm_pr_out(struct lm_scsi_path *p, enum lm_pr_out action, uint8_t type, uint64_t key, uint64_t other,
	      bool aptpl, int64_t deadline_ns, struct lm_error *err)
{
	uint8_t list[24] = { 0 };
	struct lm_scsi_cmd cmd = {
		.cdb = { 0x5f, (uint8_t)action, type, [8] = sizeof(list) }, .cdb_len = 10,
		.direction = LM_SCSI_DATA_OUT, .data = list, .len = sizeof(list),
	};

	be64_put(list, key);
	be64_put(list + 8, other);
	list[20] = aptpl;
	return lm_scsi_exec(p, &cmd, deadline_ns, err);
}

/* PERSISTENT RESERVE IN; what came is at least its header of 8 bytes. */
static int pr_in(struct lm_scsi_path *p, uint8_t action, uint8_t *buf, size_t size, size_t *ret_got,
		 int64_t deadline_ns, struct lm_error *err)
{
	struct lm_scsi_cmd cmd = {
		.cdb = { 0x5e, action, [7] = (uint8_t)(size >> 8), [8] = (uint8_t)size }, .cdb_len = 10,
		.direction = LM_SCSI_DATA_IN, .data = buf, .len = size,
	};
	int r = lm_scsi_exec(p, &cmd, deadline_ns, err);

	if (!r && cmd.got < 8)
		r = lm_err(err, -EIO, LM_SCOPE_OPERATION, "path %s: PERSISTENT RESERVE IN gave %zu bytes", p->name,
			   cmd.got);
	*ret_got = cmd.got;
	return r;
}

static int read_keys(struct lm_scsi_path *p, struct lm_pr_view *v, int64_t deadline_ns, struct lm_error *err)
{
	uint8_t buf[8 + 8 * LM_PR_KEYS_MAX] = { 0 };
	size_t got, len;
	int r = pr_in(p, 0, buf, sizeof(buf), &got, deadline_ns, err);

	if (r)
		return r;
	v->generation = be32_get(buf);
	len = be32_get(buf + 4);
	if (len > sizeof(buf) - 8 || len > got - 8)
		return lm_err(err, -E2BIG, LM_SCOPE_OPERATION, "path %s: %zu bytes of keys: more than %d hosts' paths "
			      "are registered", p->name, len, LM_PR_KEYS_MAX);
	v->nkeys = (unsigned)(len / 8);
	for (unsigned i = 0; i < v->nkeys; i++)
		v->keys[i] = be64_get(buf + 8 + 8 * i);
	return 0;
}

static int read_reservation(struct lm_scsi_path *p, struct lm_pr_view *v, uint32_t *ret_generation,
			    int64_t deadline_ns, struct lm_error *err)
{
	uint8_t buf[64] = { 0 };
	size_t got;
	int r = pr_in(p, 1, buf, sizeof(buf), &got, deadline_ns, err);

	if (r)
		return r;
	*ret_generation = be32_get(buf);
	v->held = be32_get(buf + 4) >= 16 && got >= 24;
	v->holder = v->held ? be64_get(buf + 8) : 0;
	v->type = v->held ? buf[21] & 0xf : 0;
	return 0;
}

static int report_capabilities(struct lm_scsi_path *p, struct lm_pr_abilities *ret, int64_t deadline_ns,
			       struct lm_error *err)
{
	uint8_t buf[8] = { 0 };
	size_t got;
	int r = pr_in(p, 2, buf, sizeof(buf), &got, deadline_ns, err);

	if (r)
		return r;
	ret->aptpl_known = true;
	ret->aptpl = buf[2] & 1;
	ret->types_known = buf[3] & 0x80;
	ret->types = (uint16_t)(buf[4] | buf[5] << 8);
	return 0;
}

static int report_opcode(struct lm_scsi_path *p, struct lm_pr_abilities *ret, int64_t deadline_ns,
			 struct lm_error *err)
{
	uint8_t buf[64] = { 0 };
	struct lm_scsi_cmd cmd = { /* of one command with its service action */
		.cdb = { 0xa3, 0x0c, 2, 0x5f, [5] = LM_PR_PREEMPT_ABORT, [9] = sizeof(buf) }, .cdb_len = 12,
		.direction = LM_SCSI_DATA_IN, .data = buf, .len = sizeof(buf),
	};
	int r = lm_scsi_exec(p, &cmd, deadline_ns, err);

	if (r || cmd.got < 2)
		return r;
	ret->abort_known = (buf[1] & 7) == 1 || (buf[1] & 7) == 3 || (buf[1] & 7) == 5;
	ret->abort = (buf[1] & 7) != 1;
	return 0;
}

int lm_pr_abilities(struct lm_scsi_path *p, struct lm_pr_abilities *ret, int64_t deadline_ns, struct lm_error *err)
{
	int r;

	*ret = (struct lm_pr_abilities){ 0 };
	r = report_capabilities(p, ret, deadline_ns, err);
	if (!r || r == -EOPNOTSUPP || r == -EIO)
		r = report_opcode(p, ret, deadline_ns, err);
	return r == -EOPNOTSUPP || r == -EIO ? 0 : r;
}

int lm_pr_view(struct lm_scsi_path *p, struct lm_pr_view *ret, int64_t deadline_ns, struct lm_error *err)
{
	uint32_t generation = 0;

	for (unsigned i = 0; i < VIEW_TRIES; i++) {
		int r = read_keys(p, ret, deadline_ns, err);

		if (!r)
			r = read_reservation(p, ret, &generation, deadline_ns, err);
		if (r || generation == ret->generation)
			return r;
	}
	return lm_err(err, -EAGAIN, LM_SCOPE_OPERATION, "path %s: the reservations change faster than they can be read",
		      p->name);
}

static int inquiry(struct lm_scsi_path *p, uint8_t page, uint8_t buf[static 252], size_t *ret_len, int64_t deadline_ns,
		   struct lm_error *err)
{
	struct lm_scsi_cmd cmd = {
		.cdb = { 0x12, 1, page, 0, 252 }, .cdb_len = 6,
		.direction = LM_SCSI_DATA_IN, .data = buf, .len = 252,
	};
	int r = lm_scsi_exec(p, &cmd, deadline_ns, err);

	*ret_len = 0;
	if (!r && cmd.got >= 4 && buf[1] == page) {
		*ret_len = ((size_t)buf[2] << 8 | buf[3]) + 4;
		if (*ret_len > cmd.got)
			*ret_len = cmd.got;
	}
	return r;
}

/* Designators of the unit itself, not of the port that leads there. */
static unsigned hash_designators(XXH3_state_t *hash, const uint8_t *buf, size_t len)
{
	unsigned n = 0;

	for (size_t at = 4; at + 4 <= len && at + 4 + buf[at + 3] <= len; at += 4u + buf[at + 3]) {
		if (buf[at + 1] & 0x30 || !buf[at + 3])
			continue;
		XXH3_128bits_update(hash, buf + at, 4u + buf[at + 3]);
		n++;
	}
	return n;
}

int lm_scsi_identity(struct lm_scsi_path *p, uint8_t ret[static 32], int64_t deadline_ns, struct lm_error *err)
{
	XXH3_state_t *hash = XXH3_createState();
	XXH128_canonical_t sum;
	uint8_t buf[252] = { 0 };
	size_t len = 0;
	unsigned n = 0;
	int r;

	if (!hash)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	XXH3_128bits_reset(hash);
	r = inquiry(p, 0x83, buf, &len, deadline_ns, err);
	if (!r || r == -EOPNOTSUPP)
		n = r ? 0 : hash_designators(hash, buf, len);
	if (!n && (!r || r == -EOPNOTSUPP)) {
		r = inquiry(p, 0x80, buf, &len, deadline_ns, err);
		if (!r && len > 4) {
			XXH3_128bits_update(hash, buf, len);
			n = 1;
		}
	}
	XXH128_canonicalFromHash(&sum, XXH3_128bits_digest(hash));
	XXH3_freeState(hash);
	if (!r && !n)
		r = lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "path %s: the unit has no name (VPD pages 83 and 80)",
			   p->name);
	memset(ret, 0, 32);
	memcpy(ret, &sum, sizeof(sum));
	for (unsigned i = 0; i < 16; i++)
		ret[16 + i] = ret[i] ^ 0xff;
	return r;
}
