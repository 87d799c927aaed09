/* SPDX-License-Identifier: Apache-2.0 */
/* Which transport: the source says what it may use, the destination chooses. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "engine/base/cleanup.h"
#include "engine/transport/registry.h"
#include "negotiate.h"

static bool may_use(const struct lm_ctx *c, const struct lm_transport_info *info, const char *peer,
		    char *why, size_t size)
{
	if (info->usable && !info->usable(peer, c->opt.rails, c->opt.nrails, why, size))
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

int lm_ctx_transports(const struct lm_ctx *c, const char *peer, char *ret, size_t size,
			  struct lm_error *err)
{
	bool any = !strcmp(c->opt.transport, "auto");
	char why[256] = "no such transport";
	size_t len = 0;

	ret[0] = 0;
	for (const struct lm_transport_info *const *t = lm_transports; *t; t++) {
		const struct lm_transport_info *info = *t;

		if (!any && strcmp(info->name, c->opt.transport))
			continue;
		if (may_use(c, info, peer, why, sizeof(why)))
			len += (size_t)snprintf(ret + len, size - len, "%s%s", len ? "," : "", info->name);
		if (len >= size)
			return lm_err(err, -EOVERFLOW, LM_SCOPE_SESSION, "too many transports");
	}
	return len ? 0 : lm_err(err, -ENOTSUP, LM_SCOPE_SESSION, "transport %s cannot be used here: %s",
				c->opt.transport, why);
}

int lm_ctx_choose(const struct lm_ctx *c, const char *theirs, const char *peer,
		      char ret[static LM_TRANSPORT_NAME_MAX], struct lm_error *err)
{
	char mine[sizeof(((struct lm_open *)0)->transports)];
	int r = lm_ctx_transports(c, peer, mine, sizeof(mine), err);

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

/* ---- the guest ---- */

static unsigned default_lanes(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : n > 4 ? 4 : (unsigned)n;
}

int lm_ctx_send_open(struct lm_ctx *c, enum lm_msg_type type, const char *transports, struct lm_error *err)
{
	LM_AUTO_FREE struct lm_open *open = calloc(1, sizeof(*open));
	LM_AUTO_FREE uint8_t *buf = malloc(LM_WIRE_PAYLOAD_MAX);

	if (!open || !buf)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	snprintf(open->transports, sizeof(open->transports), "%s", transports);
	open->info = c->vm->info;
	open->nlanes = c->opt.lanes ? c->opt.lanes : default_lanes();
	open->verify = c->opt.verify;
	open->nlocks = c->opt.nlocks;
	open->nregions = c->ram.nregions;
	for (unsigned i = 0; i < c->ram.nregions; i++) {
		memcpy(open->regions[i].name, c->ram.regions[i].name, sizeof(open->regions[i].name));
		open->regions[i].size = c->ram.regions[i].size;
		open->regions[i].page_size = c->ram.regions[i].page_size;
	}
	c->summary.lanes = open->nlanes;
	return lm_control_send(&c->control, type, buf, lm_wire_put_open(buf, open), lm_ctx_peer_deadline(c), err);
}

static int check_vm(const struct lm_ctx *c, const struct lm_open *o, struct lm_error *err)
{
	const struct lm_vm_info *a = &o->info, *b = &c->vm->info;

	if (strcmp(a->vmm, b->vmm))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION, "the source runs %s, the destination %s", a->vmm, b->vmm);
	if (strcmp(a->machine, b->machine))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			      "machine types differ: %s at the source, %s at the destination: start the destination "
			      "with -machine %s", a->machine, b->machine, a->machine);
	if (a->vcpus != b->vcpus)
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			      "%u vCPUs at the source, %u at the destination: start the destination with the same -smp",
			      a->vcpus, b->vcpus);
	return 0;
}

static int check_region(const struct lm_region *mine, const struct lm_open_region *theirs, struct lm_error *err)
{
	if (strcmp(mine->name, theirs->name))
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			      "memory backends differ: id=%s at the source, id=%s at the destination", theirs->name,
			      mine->name);
	if (mine->size != theirs->size)
		return lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			      "memory backend %s has %llu bytes at the source, %llu at the destination: give both the "
			      "same size=", mine->name, (unsigned long long)theirs->size,
			      (unsigned long long)mine->size);
	return 0;
}

int lm_ctx_check_open(const struct lm_ctx *c, const struct lm_open *o, struct lm_error *err)
{
	int r = check_vm(c, o, err);

	if (!r && o->nregions != c->ram.nregions)
		r = lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			   "the guest has %u memory backends at the source, %u at the destination: give both the same "
			   "-object memory-backend-file options", o->nregions, c->ram.nregions);
	if (!r && o->nlocks != c->opt.nlocks)
		r = lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			   "%u storage locks at the source, %u at the destination: give both the same --lock options in "
			   "the same order", o->nlocks, c->opt.nlocks);
	for (unsigned i = 0; !r && i < o->nregions; i++)
		r = check_region(&c->ram.regions[i], &o->regions[i], err);
	return r;
}
