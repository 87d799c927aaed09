/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths over libiscsi: one session per portal.  Each session has a random ISID, so
 * that two processes of a host do not throw each other out.
 */
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "engine/lock/lock.h"
#include "scsi_path.h"

#define CONNECT_NS (3 * LM_NS_PER_S) /* a portal that does not answer must not use up all of the time */
#define REDIRECTIONS_MAX 4           /* a target may send us to another of its portals */
#define TICK_MS 500                  /* libiscsi looks after its own timeouts when it is called */

/* What a callback of libiscsi found. */
struct waiting {
	bool done;
	int status;
	uint32_t response; /* of a task management function */
};

struct iscsi_path {
	struct lm_scsi_path path;
	struct iscsi_context *iscsi; /* NULL when not connected */
	char initiator[256], portal[128], target[256];
	int lun;
	struct waiting connecting; /* libiscsi keeps a pointer to it as long as the session lives */
};

static struct iscsi_path *iscsi_of(struct lm_scsi_path *p)
{
	return (struct iscsi_path *)p;
}

/* Drops the session; callbacks that are due are called. */
static void drop(struct iscsi_path *s)
{
	if (s->iscsi)
		iscsi_destroy_context(s->iscsi);
	s->iscsi = NULL;
}

static int lost(struct iscsi_path *s, int code, struct lm_error *err)
{
	lm_err(err, code, LM_SCOPE_OPERATION, "%s", code == -ETIMEDOUT ? "no answer in time" :
	       s->iscsi ? iscsi_get_error(s->iscsi) : "not connected");
	drop(s);
	return code;
}

/* Until the callback was called.  Else the session is dropped, so that it never will be. */
static int wait_for(struct iscsi_path *s, const struct waiting *w, int64_t deadline_ns, struct lm_error *err)
{
	while (!w->done) {
		struct pollfd p = { .fd = iscsi_get_fd(s->iscsi), .events = (short)iscsi_which_events(s->iscsi) };
		int ms = lm_deadline_poll_ms(deadline_ns);

		if (p.fd < 0)
			return lost(s, -ENOLINK, err);
		if (!ms)
			return lost(s, -ETIMEDOUT, err);
		if (poll(&p, 1, ms < 0 || ms > TICK_MS ? TICK_MS : ms) < 0 && errno != EINTR)
			return lost(s, -errno, err);
		if (iscsi_service(s->iscsi, p.revents) < 0)
			return lost(s, -ENOLINK, err);
	}
	return 0;
}

static void on_done(struct iscsi_context *iscsi, int status, void *data, void *opaque)
{
	struct waiting *w = opaque;

	(void)iscsi;
	(void)data;
	w->status = status;
	w->done = true;
}

/*
 * Connect and log in, as two steps: iscsi_full_connect_async() has memory of its own
 * that is lost when the session is dropped while TCP still connects.  Unit attentions
 * are for lm_scsi_exec().
 */
static int log_in(struct iscsi_path *s, const char *portal, struct waiting *w, int64_t deadline_ns,
		  struct lm_error *err)
{
	int r;

	s->connecting = (struct waiting){ 0 };
	if (iscsi_connect_async(s->iscsi, portal, on_done, &s->connecting))
		return lost(s, -ENOLINK, err);
	r = wait_for(s, &s->connecting, deadline_ns, err);
	if (r)
		return r;
	if (s->connecting.status != SCSI_STATUS_GOOD)
		return lost(s, -ENOLINK, err);
	*w = (struct waiting){ 0 };
	if (iscsi_login_async(s->iscsi, on_done, w))
		return lost(s, -ENOLINK, err);
	return wait_for(s, w, deadline_ns, err);
}

/* A context that knows what to log in to; of a login that was given up or redirected nothing is used again. */
static int context_new(struct iscsi_path *s, struct lm_error *err)
{
	const char *user = getenv("LIBISCSI_CHAP_USERNAME"), *password = getenv("LIBISCSI_CHAP_PASSWORD");
	uint32_t isid;

	drop(s);
	s->iscsi = iscsi_create_context(s->initiator);
	if (!s->iscsi || getrandom(&isid, sizeof(isid), 0) != sizeof(isid))
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	iscsi_set_isid_random(s->iscsi, isid & 0xffffff, (isid >> 24) & 0xff);
	iscsi_set_targetname(s->iscsi, s->target);
	iscsi_set_session_type(s->iscsi, ISCSI_SESSION_NORMAL);
	iscsi_set_header_digest(s->iscsi, ISCSI_HEADER_DIGEST_NONE);
	iscsi_set_noautoreconnect(s->iscsi, 1); /* a new nexus has to be registered first */
	iscsi_set_timeout(s->iscsi, 0);         /* deadlines are ours */
	if (user && password)
		iscsi_set_initiator_username_pwd(s->iscsi, user, password);
	return 0;
}

static int path_connect(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	struct iscsi_path *s = iscsi_of(p);
	struct waiting w = { 0 };
	char portal[MAX_STRING_SIZE + 1];
	int r = 0;

	deadline_ns = lm_deadline_min(deadline_ns, lm_now_ns() + CONNECT_NS);
	snprintf(portal, sizeof(portal), "%s", s->portal);
	for (unsigned hop = 0; hop < REDIRECTIONS_MAX; hop++) {
		r = context_new(s, err);
		if (!r)
			r = log_in(s, portal, &w, deadline_ns, err);
		if (r || w.status != SCSI_STATUS_REDIRECT)
			break;
		snprintf(portal, sizeof(portal), "%s", iscsi_get_target_address(s->iscsi));
	}
	if (!r && w.status == SCSI_STATUS_REDIRECT) {
		drop(s);
		r = lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "redirected more than %d times", REDIRECTIONS_MAX);
	} else if (!r && w.status != SCSI_STATUS_GOOD) {
		r = lost(s, -ENOLINK, err);
	}
	if (r)
		lm_err_prefix(err, "%s", p->name);
	return r;
}

static void answer(const struct scsi_task *task, int status, struct lm_scsi_cmd *cmd)
{
	cmd->status = (uint8_t)status;
	cmd->sense_key = (uint8_t)task->sense.key;
	cmd->asc = (uint16_t)task->sense.ascq;
	if (cmd->direction == LM_SCSI_DATA_IN && task->datain.size > 0) {
		cmd->got = (size_t)task->datain.size < cmd->len ? (size_t)task->datain.size : cmd->len;
		memcpy(cmd->data, task->datain.data, cmd->got);
	}
}

static int path_exec(struct lm_scsi_path *p, struct lm_scsi_cmd *cmd, int64_t deadline_ns, struct lm_error *err)
{
	static const int directions[] = {
		[LM_SCSI_NO_DATA] = SCSI_XFER_NONE, [LM_SCSI_DATA_IN] = SCSI_XFER_READ,
		[LM_SCSI_DATA_OUT] = SCSI_XFER_WRITE,
	};
	struct iscsi_path *s = iscsi_of(p);
	struct iscsi_data out = { .size = cmd->len, .data = cmd->data };
	struct waiting w = { 0 };
	struct scsi_task *task;
	int r;

	if (!s->iscsi)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "not connected");
	task = scsi_create_task((int)cmd->cdb_len, cmd->cdb, directions[cmd->direction], (int)cmd->len);
	if (!task)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	if (iscsi_scsi_command_async(s->iscsi, s->lun, task, on_done,
				     cmd->direction == LM_SCSI_DATA_OUT ? &out : NULL, &w)) {
		scsi_free_scsi_task(task);
		return lost(s, -ENOLINK, err);
	}
	r = wait_for(s, &w, deadline_ns, err);
	if (!r && (w.status < 0 || w.status > 0xff))
		r = lost(s, -ENOLINK, err); /* cancelled or timed out, by libiscsi */
	if (!r)
		answer(task, w.status, cmd);
	scsi_free_scsi_task(task);
	return r;
}

static void on_reset(struct iscsi_context *iscsi, int status, void *data, void *opaque)
{
	struct waiting *w = opaque;

	on_done(iscsi, status, data, opaque);
	w->response = status == SCSI_STATUS_GOOD && data ? *(uint32_t *)data : UINT32_MAX;
}

static int path_reset(struct lm_scsi_path *p, int64_t deadline_ns, struct lm_error *err)
{
	struct iscsi_path *s = iscsi_of(p);
	struct waiting w = { 0 };
	int r;

	if (!s->iscsi)
		return lm_err(err, -ENOLINK, LM_SCOPE_OPERATION, "not connected");
	if (iscsi_task_mgmt_lun_reset_async(s->iscsi, (uint32_t)s->lun, on_reset, &w))
		return lost(s, -ENOLINK, err);
	r = wait_for(s, &w, deadline_ns, err);
	if (!r && w.status != SCSI_STATUS_GOOD)
		return lost(s, -ENOLINK, err); /* cancelled: the session has ended */
	if (!r && w.response)
		r = lm_err(err, -EIO, LM_SCOPE_OPERATION, "%s: LOGICAL UNIT RESET: the target answered %u", p->name,
			   w.response);
	return r;
}

static void path_close(struct lm_scsi_path *p)
{
	drop(iscsi_of(p));
	free(p);
}

static const struct lm_scsi_path_ops iscsi_ops = {
	.connect = path_connect,
	.exec = path_exec,
	.reset = path_reset,
	.close = path_close,
};

/* The host's own name as an initiator, which targets have in their access lists. */
static void default_initiator(const char *host, char *ret, size_t size)
{
	LM_AUTO_FILE FILE *f = fopen("/etc/iscsi/initiatorname.iscsi", "re");
	char line[256];

	while (f && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "InitiatorName=", 14))
			continue;
		line[strcspn(line, " \t\r\n")] = 0;
		snprintf(ret, size, "%s", line + 14);
		return;
	}
	snprintf(ret, size, "iqn.2008-11.org.linux-kvm:%s", host);
}

static int one_path(const char *initiator, const char *portal, size_t portal_len, const char *target, size_t target_len,
		    int lun, struct lm_scsi_path **ret, struct lm_error *err)
{
	struct iscsi_path *s = calloc(1, sizeof(*s));

	if (!s)
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	s->path.ops = &iscsi_ops;
	s->lun = lun;
	snprintf(s->initiator, sizeof(s->initiator), "%s", initiator);
	snprintf(s->portal, sizeof(s->portal), "%.*s", (int)portal_len, portal);
	snprintf(s->target, sizeof(s->target), "%.*s", (int)target_len, target);
	snprintf(s->path.name, sizeof(s->path.name), "%.*s", (int)portal_len, portal);
	*ret = &s->path;
	return 0;
}

static int lun_number(const char *text, struct lm_error *err)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || n > 16383)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "'%.32s' is not the number of a LUN", text);
	return (int)n;
}

int lm_scsi_iscsi_paths(const char *rest, const char *host, const char *initiator,
			struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *ret_n, struct lm_error *err)
{
	size_t portals = strcspn(rest, "/"), target = rest[portals] ? strcspn(rest + portals + 1, "/") : 0;
	const char *iqn = rest + portals + 1;
	char name[256];
	unsigned n = 0;
	int lun, r = 0;

	if (!portals || !target || iqn[target] != '/')
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "write scsi-pr:iscsi://PORTAL[,PORTAL...]/IQN/LUN");
	lun = lun_number(iqn + target + 1, err);
	if (lun < 0)
		return lun;
	if (!initiator) {
		default_initiator(host, name, sizeof(name));
		initiator = name;
	}
	for (const char *p = rest; !r && p < rest + portals; p += strcspn(p, ",/") + 1) {
		if (n == LM_SCSI_PATHS_MAX)
			r = lm_err(err, -E2BIG, LM_SCOPE_OPERATION, "more than %d portals", LM_SCSI_PATHS_MAX);
		else if (strcspn(p, ",/"))
			r = one_path(initiator, p, strcspn(p, ",/"), iqn, target, lun, &paths[n], err);
		n += !r && strcspn(p, ",/");
	}
	for (unsigned i = 0; r && i < n; i++)
		lm_scsi_close(paths[i]);
	*ret_n = n;
	return r;
}
