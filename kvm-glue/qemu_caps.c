/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's migration capabilities and parameters: set for our own use of its
 * migration, and put back as they were found.
 */
#include <string.h>
#include "qemu_priv.h"

struct cap {
	const char *name;
	bool source, dest; /* the state that is needed there */
};

/*
 * Besides the four that do the work everything is switched off that would change
 * what goes through the socket.  Capabilities that a version lacks are left out.
 */
static const struct cap caps[] = {
	{ "x-ignore-shared", true, true },
	{ "events", true, true },
	{ "pause-before-switchover", true, false },
	{ "late-block-activate", false, true }, /* disks are taken at `cont`, not before */
	{ "auto-converge", false, false },
	{ "background-snapshot", false, false },
	{ "block", false, false },
	{ "compress", false, false },
	{ "dirty-limit", false, false },
	{ "mapped-ram", false, false },
	{ "multifd", false, false },
	{ "postcopy-preempt", false, false },
	{ "postcopy-ram", false, false },
	{ "release-ram", false, false },
	{ "return-path", false, false },
	{ "switchover-ack", false, false },
	{ "x-colo", false, false },
	{ "xbzrle", false, false },
	{ "zero-blocks", false, false },
	{ "zero-copy-send", false, false },
};

/*
 * QEMU's private blocks (ROMs, video memory) should not be held up; 300 ms is
 * QEMU's own default: the part of them that the guest changes all the time must
 * go out while it is stopped.
 */
#define QEMU_MAX_BANDWIDTH (INT64_C(1) << 40)
#define QEMU_DOWNTIME_LIMIT_MS 300

static const struct cap *cap_find(const char *name)
{
	for (size_t i = 0; i < sizeof(caps) / sizeof(*caps); i++)
		if (!strcmp(caps[i].name, name))
			return &caps[i];
	return NULL;
}

static struct json_object *cap_make(const char *name, bool state)
{
	struct json_object *o = lm_js_strings("capability", name, NULL);

	json_object_object_add(o, "state", json_object_new_boolean(state));
	return o;
}

static struct json_object *caps_args(struct json_object *list)
{
	struct json_object *args = json_object_new_object();

	json_object_object_add(args, "capabilities", list);
	return args;
}

static int caps_set(struct qemu *q, struct lm_error *err)
{
	struct json_object *list = json_object_new_array();

	for (size_t i = 0; i < lm_js_len(q->caps_before); i++) {
		const char *name = lm_js_text(lm_js_at(q->caps_before, i), "capability");
		const struct cap *c = cap_find(name);

		if (c)
			json_object_array_add(list, cap_make(name, q->side == LM_SOURCE ? c->source : c->dest));
	}
	return qemu_ask(q, "migrate-set-capabilities", caps_args(list), NULL, err);
}

static struct json_object *params_make(int64_t bandwidth, int64_t downtime_ms, const char *tls_creds)
{
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "max-bandwidth", json_object_new_int64(bandwidth));
	json_object_object_add(o, "downtime-limit", json_object_new_int64(downtime_ms));
	if (tls_creds)
		json_object_object_add(o, "tls-creds", json_object_new_string(tls_creds));
	return o;
}

static int params_set(struct qemu *q, struct lm_error *err)
{
	const char *tls = lm_js_str(q->params_before, "tls-creds") ? "" : NULL;

	return qemu_ask(q, "migrate-set-parameters",
			params_make(QEMU_MAX_BANDWIDTH, QEMU_DOWNTIME_LIMIT_MS, tls), NULL, err);
}

int qemu_caps_set(struct qemu *q, struct lm_error *err)
{
	int r = 0;

	if (!q->caps_before)
		r = qemu_ask(q, "query-migrate-capabilities", NULL, &q->caps_before, err);
	if (!r && !q->params_before)
		r = qemu_ask(q, "query-migrate-parameters", NULL, &q->params_before, err);
	if (!r)
		r = caps_set(q, err);
	return r ? r : params_set(q, err);
}

/* On the way out: what cannot be put back (a QEMU that has ended, say) is only noted. */
void qemu_caps_restore(struct qemu *q)
{
	struct lm_error err = { 0 };
	int r = 0;

	if (q->caps_before)
		r = qemu_ask(q, "migrate-set-capabilities", caps_args(json_object_get(q->caps_before)), NULL, &err);
	if (!r && q->params_before)
		r = qemu_ask(q, "migrate-set-parameters",
			     params_make(lm_js_int(q->params_before, "max-bandwidth", 0),
					 lm_js_int(q->params_before, "downtime-limit", QEMU_DOWNTIME_LIMIT_MS),
					 lm_js_str(q->params_before, "tls-creds")), NULL, &err);
	if (r)
		qemu_debug(q, "QEMU's migration settings could not be put back: %s", err.msg);
	lm_js_put(&q->caps_before);
	lm_js_put(&q->params_before);
}
