/* SPDX-License-Identifier: Apache-2.0 */
/* scsi-pr:iscsi://PORTAL[,PORTAL...]/IQN/LUN and scsi-pr:/dev/X, with ?type=, register=, initiator= */
#include <string.h>
#include "backends.h"
#include "scsi_pr.h"

struct words {
	char initiator[256];
	struct lm_scsi_pr_options options;
};

static int parse(const char *rest, struct words *w, struct lm_error *err)
{
	static const char *const keys[] = { "type", "register", "initiator", "abort", NULL };
	size_t len = strcspn(rest, "?");
	const char *options = rest[len] ? rest + len + 1 : "";
	char value[16];
	int r = lm_lock_options_known(options, keys, err);

	*w = (struct words){ .options = { .type = 5 } };
	if (r)
		return r;
	memcpy(w->options.where, rest, len); /* a URI is shorter than this */
	if (lm_lock_option(options, "type", value, sizeof(value))) {
		if (strcmp(value, "5") && strcmp(value, "6"))
			return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "type=%s: 5 (write exclusive, registrants only) or 6 "
				      "(exclusive access, registrants only); others cannot say who holds them", value);
		w->options.type = (uint8_t)(*value - '0');
	}
	if (lm_lock_option(options, "register", value, sizeof(value))) {
		if (strcmp(value, "early") && strcmp(value, "late"))
			return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "register=%s: early or late", value);
		w->options.early = !strcmp(value, "early");
	}
	if (lm_lock_option(options, "abort", value, sizeof(value))) {
		if (strcmp(value, "auto") && strcmp(value, "no"))
			return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "abort=%s: auto, or no for a target that hangs in PREEMPT "
				      "AND ABORT", value);
		w->options.no_abort = !strcmp(value, "no");
	}
	lm_lock_option(options, "initiator", w->initiator, sizeof(w->initiator));
	return 0;
}

#ifndef HAVE_LIBISCSI
int lm_scsi_iscsi_paths(const char *rest, const char *host, const char *initiator,
			struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *ret_n, struct lm_error *err)
{
	(void)rest, (void)host, (void)initiator, (void)paths, (void)ret_n;
	return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "scsi-pr:iscsi: this program was built without it: libiscsi was "
		      "not there");
}
#endif

#ifndef HAVE_SGUTILS
int lm_scsi_sg_paths(const char *device, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX], unsigned *ret_n,
		     struct lm_error *err)
{
	(void)device, (void)paths, (void)ret_n;
	return lm_err(err, -ENOTSUP, LM_SCOPE_OPERATION, "scsi-pr:/dev: this program was built without it: libsgutils2 was "
		      "not there");
}
#endif

static int make_paths(struct words *w, const char *host, struct lm_scsi_path *paths[static LM_SCSI_PATHS_MAX],
		      unsigned *ret_n, struct lm_error *err)
{
	if (!strncmp(w->options.where, "iscsi://", 8))
		return lm_scsi_iscsi_paths(w->options.where + 8, host, *w->initiator ? w->initiator : NULL, paths, ret_n, err);
	w->options.find = lm_scsi_sg_paths;
	if (*w->options.where == '/')
		return lm_scsi_sg_paths(w->options.where, paths, ret_n, err);
	return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "scsi-pr: needs iscsi://PORTAL[,PORTAL...]/IQN/LUN or a path in /dev");
}

int lm_scsi_pr_open(const char *rest, const struct lm_lock_params *p, struct lm_lock **ret, struct lm_error *err)
{
	struct lm_scsi_path *paths[LM_SCSI_PATHS_MAX];
	struct words w;
	unsigned n = 0;
	int r = parse(rest, &w, err);

	if (!r)
		r = make_paths(&w, p->host, paths, &n, err);
	return r ? r : lm_scsi_pr_new(paths, n, &w.options, p->host, p->deadline_ns, ret, err);
}
