/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination answers OPEN: the guest and the layout of its memory are as at the source,
 * a transport is chosen, lanes are accepted and memory is made known to them.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include "engine/base/clock.h"
#include "engine/base/cleanup.h"
#include "session.h"
#include "engine/base/testhook.h"

static int check_vm(const struct lm_session *s, const struct lm_open *o, struct lm_error *err)
{
	const struct lm_vm_info *a = &o->info, *b = &s->vm->info;

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

int lm_dest_check_open(const struct lm_session *s, const struct lm_open *o, struct lm_error *err)
{
	int r = check_vm(s, o, err);

	if (!r && o->nregions != s->ram.nregions)
		r = lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			   "the guest has %u memory backends at the source, %u at the destination: give both the same "
			   "-object memory-backend-file options", o->nregions, s->ram.nregions);
	if (!r && o->nlocks != s->opt.nlocks)
		r = lm_err(err, -EINVAL, LM_SCOPE_SESSION,
			   "%u storage locks at the source, %u at the destination: give both the same --lock options in "
			   "the same order", o->nlocks, s->opt.nlocks);
	for (unsigned i = 0; !r && i < o->nregions; i++)
		r = check_region(&s->ram.regions[i], &o->regions[i], err);
	return r;
}

/* The transport listens before OPENED says where. */
static int send_opened(struct lm_session *s, struct lm_transport_params *p, struct lm_error *err)
{
	struct lm_opened opened = { .nlanes = p->nlanes };
	uint8_t buf[sizeof(struct lm_wire_opened)];
	int r;

	s->pull.allowed = s->opt.postcopy != LM_POSTCOPY_NEVER && !s->dst.open.verify && s->transport->ops->fetch &&
			  s->vm->ops->pager;
	opened.postcopy = s->pull.allowed;
	opened.reopen = s->transport->ops->reopen;
	if (getrandom(p->token, LM_TOKEN_SIZE, 0) != LM_TOKEN_SIZE)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "no random numbers for the session's token");
	r = lm_transport_listen(s->transport, p, opened.endpoint, err);
	if (r)
		return r;
	memcpy(opened.token, p->token, LM_TOKEN_SIZE);
	memcpy(opened.transport, s->summary.transport, sizeof(opened.transport));
	return lm_control_send(&s->control, LM_MSG_OPENED, buf, lm_wire_put_opened(buf, &opened),
			       lm_session_peer_deadline(s), err);
}

/* What this side's files hold already, as RESIDENT messages. */
static int send_resident_region(struct lm_session *s, unsigned region, uint8_t *buf, struct lm_error *err)
{
	struct lm_wire_resident *w = (void *)buf;
	struct lm_wire_extent *x = (void *)(w + 1);
	struct lm_bitmap existing;
	uint64_t pos = 0, first, n;
	uint32_t count = 0;
	int r = lm_bitmap_init(&existing, lm_region_npages(&s->ram.regions[region]));

	if (r)
		return lm_err(err, r, LM_SCOPE_SESSION, "out of memory");
	r = lm_region_existing(&s->ram.regions[region], 0, existing.nbits, &existing, err);
	while (!r) {
		n = lm_bitmap_next_run(&existing, pos, existing.nbits, &first);
		if (n)
			x[count++] = (struct lm_wire_extent){ lm_le64(first), lm_le64(n) };
		pos = first + n;
		if (count && (!n || count == LM_WIRE_EXTENTS_MAX)) {
			w->region = lm_le32(region);
			w->count = lm_le32(count);
			r = lm_control_send(&s->control, LM_MSG_RESIDENT, w, sizeof(*w) + count * sizeof(*x),
					    lm_session_peer_deadline(s), err);
			count = 0;
		}
		if (!n)
			break;
	}
	lm_bitmap_fini(&existing);
	return r;
}

static int send_resident(struct lm_session *s, struct lm_error *err)
{
	LM_AUTO_FREE uint8_t *buf = malloc(LM_WIRE_PAYLOAD_MAX);
	int r = 0;

	if (!buf)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		r = send_resident_region(s, i, buf, err);
	return r;
}

/* Registering memory with a device may take long: the source hears from us meanwhile. */
static int add_regions(struct lm_session *s, struct lm_key keys[static LM_REGIONS_MAX], struct lm_error *err)
{
	struct lm_keepalive keepalive;
	int r = lm_keepalive_start(&keepalive, &s->control, err);

	if (r)
		return r;
	for (unsigned i = 0; !r && i < s->ram.nregions; i++)
		r = lm_transport_region_add(s->transport, &s->ram.regions[i], &keys[i], err);
	lm_keepalive_stop(&keepalive);
	return r;
}

static int open_lanes(struct lm_session *s, struct lm_transport_params *p, struct lm_error *err)
{
	struct lm_key keys[LM_REGIONS_MAX];
	int r;

	p->deadline_ns = lm_session_peer_deadline(s);
	r = lm_session_open_lanes(s, p, err);
	if (!r)
		r = send_resident(s, err);
	if (!r)
		r = add_regions(s, keys, err);
	if (!r)
		r = lm_pool_new(s->summary.lanes, &s->pool, err);
	if (r)
		return r;
	s->dst.placed = calloc(s->summary.lanes, sizeof(*s->dst.placed));
	s->dst.lane_errors = calloc(s->summary.lanes, sizeof(*s->dst.lane_errors));
	if (!s->dst.placed || !s->dst.lane_errors)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	s->dst.reopen = (struct lm_dest_reopen){ .params = *p, .stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
	s->dst.reopen.params.cancel_fd = s->dst.reopen.stop_fd;
	if (s->dst.reopen.stop_fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "eventfd");
	s->patience_ns = s->transport->ops->reopen ? s->opt.recover_timeout_ns : 0;
	r = lm_session_be_patient(s, true, err);
	if (r)
		return r;
	lm_pool_start(s->pool, lm_dest_place_worker, s);
	return lm_control_send(&s->control, LM_MSG_READY, keys, s->ram.nregions * sizeof(keys[0]),
			       lm_session_peer_deadline(s), err);
}

int lm_dest_handle_open(struct lm_session *s, const struct lm_msg *msg, struct lm_error *err)
{
	struct lm_event e = { .type = LM_EVENT_OPENED };
	struct lm_open *o = &s->dst.open;
	struct lm_transport_params p;
	char name[LM_TRANSPORT_NAME_MAX];
	int r = lm_wire_get_open(msg->payload, msg->len, o, err);

	if (!r)
		r = lm_dest_check_open(s, o, err);
	if (!r)
		r = lm_ram_map(&s->ram, true, err);
	if (!r)
		r = lm_session_choose(s, o->transports, s->peer, name, err);
	if (!r)
		r = lm_session_make_transport(s, name, err);
	if (r)
		return r;
	s->summary.lanes = s->opt.lanes && s->opt.lanes < o->nlanes ? s->opt.lanes : o->nlanes;
	p = lm_session_transport_params(s, LM_PUSH);
	r = send_opened(s, &p, err);
	if (!r)
		r = open_lanes(s, &p, err);
	if (r)
		return r;
	s->opened = true;
	lm_session_log(s, LM_LOG_DEBUG, "transport: %s", s->transport->info);
	e.u.opened.transport = s->summary.transport;
	e.u.opened.lanes = s->summary.lanes;
	e.u.opened.ram_bytes = s->summary.ram_bytes;
	e.u.opened.peer = s->peer;
	lm_session_event(s, &e);
	return lm_session_stage(s, "copy", err);
}
