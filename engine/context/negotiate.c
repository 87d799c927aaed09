/* SPDX-License-Identifier: Apache-2.0 */
/* Which transport: the source says what it may use, the destination chooses. */
#include <stdio.h>
#include <string.h>
#include "engine/session/session.h"

static bool may_use(const struct lm_session *s, const struct lm_transport_info *info, const char *peer,
		    char *why, size_t size)
{
	if (info->usable && !info->usable(peer, s->opt.rails, s->opt.nrails, why, size))
		return false;
	return true;
}

bool lm_name_in_list(const char *name, const char *list)
{
	size_t len = strlen(name);

	while (*list) {
		size_t n = strcspn(list, ",");

		if (n == len && !memcmp(list, name, n))
			return true;
		list += n + (list[n] == ',');
	}
	return false;
}

int lm_session_transports(const struct lm_session *s, const char *peer, char *ret, size_t size,
			  struct lm_error *err)
{
	bool any = !strcmp(s->opt.transport, "auto");
	char why[256] = "no such transport";
	size_t len = 0;

	ret[0] = 0;
	for (const struct lm_transport_info *const *t = lm_transports; *t; t++) {
		const struct lm_transport_info *info = *t;

		if (!any && strcmp(info->name, s->opt.transport))
			continue;
		if (may_use(s, info, peer, why, sizeof(why)))
			len += (size_t)snprintf(ret + len, size - len, "%s%s", len ? "," : "", info->name);
		if (len >= size)
			return lm_err(err, -EOVERFLOW, LM_SCOPE_SESSION, "too many transports");
	}
	return len ? 0 : lm_err(err, -ENOTSUP, LM_SCOPE_SESSION, "transport %s cannot be used here: %s",
				s->opt.transport, why);
}

int lm_session_choose(const struct lm_session *s, const char *theirs, const char *peer,
		      char ret[static LM_TRANSPORT_NAME_MAX], struct lm_error *err)
{
	char mine[sizeof(((struct lm_open *)0)->transports)];
	int r = lm_session_transports(s, peer, mine, sizeof(mine), err);

	if (r)
		return r;
	while (*theirs) {
		size_t n = strcspn(theirs, ",");

		snprintf(ret, LM_TRANSPORT_NAME_MAX, "%.*s", (int)n, theirs);
		if (n && n < LM_TRANSPORT_NAME_MAX && lm_name_in_list(ret, mine))
			return 0;
		theirs += n + (theirs[n] == ',');
	}
	ret[0] = 0;
	return lm_err(err, -ENOTSUP, LM_SCOPE_SESSION,
		      "the source offers other transports than this side may use (%s): choose with --transport; "
		      "`migrate-rdma transports` says what each host can do", mine);
}
