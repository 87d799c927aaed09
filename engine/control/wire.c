/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include "wire.h"

static const char *const msg_names[LM_MSG_TYPES] = {
	[LM_MSG_HELLO] = "HELLO",         [LM_MSG_OPEN] = "OPEN",
	[LM_MSG_OPENED] = "OPENED",       [LM_MSG_RESIDENT] = "RESIDENT",
	[LM_MSG_READY] = "READY",         [LM_MSG_LANE_DROP] = "LANE_DROP",
	[LM_MSG_LANE_DROPPED] = "LANE_DROPPED", [LM_MSG_PREPARE] = "PREPARE",
	[LM_MSG_PREPARED] = "PREPARED",   [LM_MSG_STATE] = "STATE",
	[LM_MSG_SAVED] = "SAVED",         [LM_MSG_LOADED] = "LOADED",
	[LM_MSG_COMMIT] = "COMMIT",       [LM_MSG_RESUMED] = "RESUMED",
	[LM_MSG_ABORT] = "ABORT",         [LM_MSG_PING] = "PING",
	[LM_MSG_PONG] = "PONG",
	[LM_MSG_POSTCOPY] = "POSTCOPY",   [LM_MSG_POSTCOPY_OPENED] = "POSTCOPY_OPENED",
	[LM_MSG_POSTCOPY_KEYS] = "POSTCOPY_KEYS", [LM_MSG_LEFT] = "LEFT",
	[LM_MSG_MISSING] = "MISSING",     [LM_MSG_RECOVER] = "RECOVER",
	[LM_MSG_WHOLE] = "WHOLE",         [LM_MSG_LOCK_ANNOUNCE] = "LOCK_ANNOUNCE",
	[LM_MSG_LOCK_ANSWER] = "LOCK_ANSWER", [LM_MSG_LOCK_OFFER] = "LOCK_OFFER",
	[LM_MSG_LANE_OPEN] = "LANE_OPEN",
	[LM_MSG_QUICK] = "QUICK",         [LM_MSG_QUICK_READY] = "QUICK_READY",
	[LM_MSG_QUICK_IMAGE] = "QUICK_IMAGE",
};

const char *lm_msg_name(unsigned type)
{
	return type < LM_MSG_TYPES && msg_names[type] ? msg_names[type] : "unknown message";
}

static int bad(struct lm_error *err, const char *what)
{
	return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the peer sent a bad message: %s", what);
}

/* Longest string that fits, NUL padded; what does not fit is cut. */
static void put_string(char *dst, size_t size, const char *src)
{
	memset(dst, 0, size);
	memcpy(dst, src, strnlen(src, size - 1));
}

/* A fixed field must be terminated and printable: it is going to be printed. */
static bool get_string(char *dst, const char *src, size_t size)
{
	size_t len = strnlen(src, size);

	if (len == size)
		return false;
	for (size_t i = 0; i < len; i++)
		if (!isprint((unsigned char)src[i]))
			return false;
	memset(dst, 0, size);
	memcpy(dst, src, len);
	return true;
}

int lm_wire_get_header(const struct lm_wire_header *h, uint64_t seq, unsigned *ret_type,
		       uint32_t *ret_len, struct lm_error *err)
{
	unsigned type = lm_le16_get(h->type);
	uint32_t len = lm_le32_get(h->len);

	if (lm_le32_get(h->magic) != LM_WIRE_MAGIC)
		return bad(err, "no migrate-rdma control message (is something else on that port?)");
	if (!type || type >= LM_MSG_TYPES)
		return bad(err, "unknown type");
	if (lm_le16_get(h->reserved) || lm_le32_get(h->reserved2))
		return bad(err, "reserved fields are not zero");
	if (len > LM_WIRE_PAYLOAD_MAX)
		return bad(err, "payload above 1 MiB");
	if (lm_le64_get(h->seq) != seq)
		return bad(err, "sequence number out of order (replayed or lost)");
	*ret_type = type;
	*ret_len = len;
	return 0;
}

size_t lm_wire_put_hello(void *buf)
{
	struct lm_wire_hello *h = buf;

	memset(h, 0, sizeof(*h));
	h->version = lm_le16(LM_WIRE_VERSION);
	h->compat = lm_le16(LM_WIRE_COMPAT);
	h->features = lm_le32(LM_HELLO_LANES);
	put_string(h->software, sizeof(h->software), lm_version());
	return sizeof(*h);
}

int lm_wire_get_hello(const void *p, size_t len, char software[static 32], struct lm_error *err)
{
	const struct lm_wire_hello *h = p;
	unsigned version, compat;

	/* Later versions may append to HELLO. */
	if (len < sizeof(*h))
		return bad(err, "HELLO too short");
	if (!get_string(software, h->software, sizeof(h->software)))
		return bad(err, "HELLO without a software name");
	version = lm_le16_get(h->version);
	compat = lm_le16_get(h->compat);
	if (version < LM_WIRE_COMPAT || compat > LM_WIRE_VERSION)
		return lm_err(err, -EPROTONOSUPPORT, LM_SCOPE_SESSION,
			      "the peer (%s) speaks protocol version %u (compatible down to %u), this "
			      "side %u (down to %u): install versions that match",
			      software, version, compat, LM_WIRE_VERSION, LM_WIRE_COMPAT);
	return 0;
}

uint32_t lm_wire_hello_features(const void *p)
{
	return lm_le32_get(((const struct lm_wire_hello *)p)->features);
}

size_t lm_wire_put_open(void *buf, const struct lm_open *open)
{
	struct lm_wire_open *o = buf;
	struct lm_wire_region *r = (void *)(o + 1);

	memset(o, 0, sizeof(*o));
	put_string(o->transports, sizeof(o->transports), open->transports);
	put_string(o->vmm, sizeof(o->vmm), open->info.vmm);
	put_string(o->machine, sizeof(o->machine), open->info.machine);
	put_string(o->vmm_version, sizeof(o->vmm_version), open->info.version);
	o->vcpus = lm_le32(open->info.vcpus);
	o->nlanes = lm_le32(open->nlanes);
	o->flags = lm_le32((open->info.running ? LM_OPEN_RUNNING : 0) | (open->verify ? LM_OPEN_VERIFY : 0) |
			   open->nlocks << LM_OPEN_LOCKS_SHIFT);
	o->nregions = lm_le32(open->nregions);
	for (unsigned i = 0; i < open->nregions; i++) {
		put_string(r[i].name, sizeof(r[i].name), open->regions[i].name);
		r[i].size = lm_le64(open->regions[i].size);
		r[i].page_size = lm_le64(open->regions[i].page_size);
	}
	return sizeof(*o) + open->nregions * sizeof(*r);
}

static int get_region(const struct lm_wire_region *w, struct lm_open_region *r, struct lm_error *err)
{
	r->size = lm_le64_get(w->size);
	r->page_size = lm_le64_get(w->page_size);
	if (!get_string(r->name, w->name, sizeof(w->name)) || !r->name[0])
		return bad(err, "OPEN: region without a name");
	if (r->page_size < LM_PAGE_SIZE || r->page_size > LM_RUN_MAX || (r->page_size & (r->page_size - 1)))
		return bad(err, "OPEN: impossible page size");
	if (!r->size || r->size > LM_REGION_SIZE_MAX || r->size % r->page_size)
		return bad(err, "OPEN: impossible region size");
	return 0;
}

int lm_wire_get_open(const void *p, size_t len, struct lm_open *ret, struct lm_error *err)
{
	const struct lm_wire_open *o = p;
	const struct lm_wire_region *r = (const void *)(o + 1);
	uint32_t nregions, nlanes, flags;

	memset(ret, 0, sizeof(*ret));
	if (len < sizeof(*o))
		return bad(err, "OPEN too short");
	nregions = lm_le32_get(o->nregions);
	nlanes = lm_le32_get(o->nlanes);
	flags = lm_le32_get(o->flags);
	if (!nregions || nregions > LM_REGIONS_MAX || len != sizeof(*o) + nregions * sizeof(*r))
		return bad(err, "OPEN: number of regions");
	if (!nlanes || nlanes > LM_LANES_MAX)
		return bad(err, "OPEN: number of lanes");
	if (flags & ~(LM_OPEN_RUNNING | LM_OPEN_VERIFY | LM_OPEN_LOCKS))
		return bad(err, "OPEN: unknown flags");
	if (flags >> LM_OPEN_LOCKS_SHIFT > LM_LOCKS_MAX)
		return bad(err, "OPEN: number of storage locks");
	if (!get_string(ret->transports, o->transports, sizeof(o->transports)) ||
	    !get_string(ret->info.vmm, o->vmm, sizeof(o->vmm)) ||
	    !get_string(ret->info.machine, o->machine, sizeof(o->machine)) ||
	    !get_string(ret->info.version, o->vmm_version, sizeof(o->vmm_version)))
		return bad(err, "OPEN: text field");
	ret->info.vcpus = lm_le32_get(o->vcpus);
	ret->info.running = flags & LM_OPEN_RUNNING;
	ret->verify = flags & LM_OPEN_VERIFY;
	ret->nlocks = flags >> LM_OPEN_LOCKS_SHIFT;
	ret->nlanes = nlanes;
	ret->nregions = nregions;
	for (unsigned i = 0; i < nregions; i++) {
		int e = get_region(&r[i], &ret->regions[i], err);

		if (e)
			return e;
	}
	return 0;
}

size_t lm_wire_put_opened(void *buf, const struct lm_opened *opened)
{
	struct lm_wire_opened *o = buf;

	memset(o, 0, sizeof(*o));
	put_string(o->transport, sizeof(o->transport), opened->transport);
	memcpy(o->token, opened->token, sizeof(o->token));
	memcpy(o->endpoint, opened->endpoint, sizeof(o->endpoint));
	o->nlanes = lm_le32(opened->nlanes);
	o->flags = lm_le32((opened->postcopy ? LM_OPENED_POSTCOPY : 0) | (opened->reopen ? LM_OPENED_REOPEN : 0));
	return sizeof(*o);
}

int lm_wire_get_opened(const void *p, size_t len, unsigned nlanes_asked, struct lm_opened *ret,
		       struct lm_error *err)
{
	const struct lm_wire_opened *o = p;
	uint32_t nlanes;

	memset(ret, 0, sizeof(*ret));
	if (len != sizeof(*o) || lm_le32_get(o->flags) & ~(LM_OPENED_POSTCOPY | LM_OPENED_REOPEN))
		return bad(err, "OPENED: length or flags");
	if (!get_string(ret->transport, o->transport, sizeof(o->transport)))
		return bad(err, "OPENED: transport");
	nlanes = lm_le32_get(o->nlanes);
	if (!nlanes || nlanes > nlanes_asked)
		return bad(err, "OPENED: number of lanes");
	memcpy(ret->token, o->token, sizeof(ret->token));
	memcpy(ret->endpoint, o->endpoint, sizeof(ret->endpoint));
	ret->nlanes = nlanes;
	ret->postcopy = lm_le32_get(o->flags) & LM_OPENED_POSTCOPY;
	ret->reopen = lm_le32_get(o->flags) & LM_OPENED_REOPEN;
	return 0;
}

int lm_wire_get_lane_open(const void *p, size_t len, unsigned nlanes, unsigned *ret_lane,
			  uint8_t ret_token[static LM_TOKEN_SIZE], struct lm_error *err)
{
	const struct lm_wire_lane_open *o = p;

	if (len != sizeof(*o) || lm_le32_get(o->reserved) || lm_le32_get(o->lane) >= nlanes)
		return bad(err, "LANE_OPEN: length, lane or reserved field");
	*ret_lane = lm_le32_get(o->lane);
	memcpy(ret_token, o->token, LM_TOKEN_SIZE);
	return 0;
}

int lm_wire_get_ready(const void *p, size_t len, unsigned nregions, struct lm_key *ret_keys,
		      struct lm_error *err)
{
	if (len != nregions * sizeof(struct lm_key))
		return bad(err, "READY: number of regions");
	memcpy(ret_keys, p, len);
	return 0;
}

int lm_wire_get_resident(const void *p, size_t len, struct lm_bitmap *resident, unsigned nregions,
			 struct lm_error *err)
{
	const struct lm_wire_resident *w = p;
	const struct lm_wire_extent *x = (const void *)(w + 1);
	uint32_t region, count;

	if (len < sizeof(*w))
		return bad(err, "RESIDENT too short");
	region = lm_le32_get(w->region);
	count = lm_le32_get(w->count);
	if (region >= nregions || count > LM_WIRE_EXTENTS_MAX || len != sizeof(*w) + count * sizeof(*x))
		return bad(err, "RESIDENT: region or count");
	for (uint32_t i = 0; i < count; i++) {
		uint64_t first = lm_le64_get(x[i].first), n = lm_le64_get(x[i].npages);
		uint64_t npages = resident[region].nbits;

		if (first >= npages || !n || n > npages - first)
			return bad(err, "RESIDENT: extent outside its region");
		lm_bitmap_set_range(&resident[region], first, n);
	}
	return 0;
}

/* ---- post-copy ---- */

size_t lm_wire_put_postcopy_opened(void *buf, const struct lm_opened *opened,
				   const uint8_t secret[static LM_TOKEN_SIZE])
{
	struct lm_wire_postcopy_opened *o = buf;

	memset(o, 0, sizeof(*o));
	put_string(o->transport, sizeof(o->transport), opened->transport);
	memcpy(o->token, opened->token, sizeof(o->token));
	memcpy(o->secret, secret, sizeof(o->secret));
	memcpy(o->endpoint, opened->endpoint, sizeof(o->endpoint));
	o->nlanes = lm_le32(opened->nlanes);
	return sizeof(*o);
}

int lm_wire_get_postcopy_opened(const void *p, size_t len, unsigned nlanes, struct lm_opened *ret,
				uint8_t ret_secret[static LM_TOKEN_SIZE], struct lm_error *err)
{
	const struct lm_wire_postcopy_opened *o = p;

	memset(ret, 0, sizeof(*ret));
	if (len != sizeof(*o) || lm_le32_get(o->reserved))
		return bad(err, "POSTCOPY_OPENED: length");
	if (!get_string(ret->transport, o->transport, sizeof(o->transport)))
		return bad(err, "POSTCOPY_OPENED: transport");
	if (lm_le32_get(o->nlanes) != nlanes)
		return bad(err, "POSTCOPY_OPENED: number of lanes");
	memcpy(ret->token, o->token, sizeof(ret->token));
	memcpy(ret->endpoint, o->endpoint, sizeof(ret->endpoint));
	memcpy(ret_secret, o->secret, LM_TOKEN_SIZE);
	ret->nlanes = nlanes;
	return 0;
}

int lm_wire_get_left(const void *p, size_t len, const struct lm_ram *ram, lm_left_fn *left, void *opaque,
		     bool *ret_end, struct lm_error *err)
{
	const struct lm_wire_left *w = p;
	const struct lm_wire_extent *x = (const void *)(w + 1);
	uint32_t region, count, kind;

	if (len < sizeof(*w) || lm_le32_get(w->reserved))
		return bad(err, "LEFT: length");
	region = lm_le32_get(w->region);
	count = lm_le32_get(w->count);
	kind = lm_le32_get(w->kind);
	if (region >= ram->nregions || count > LM_WIRE_EXTENTS_MAX || kind > LM_LEFT_END ||
	    len != sizeof(*w) + count * sizeof(*x) || (kind == LM_LEFT_END && count))
		return bad(err, "LEFT: region, kind or count");
	*ret_end = kind == LM_LEFT_END;
	for (uint32_t i = 0; i < count; i++) {
		uint64_t first = lm_le64_get(x[i].first), n = lm_le64_get(x[i].npages);
		uint64_t npages = lm_region_npages(&ram->regions[region]);

		if (first >= npages || !n || n > npages - first)
			return bad(err, "LEFT: extent outside its region");
		left(opaque, region, first, n, kind == LM_LEFT_ZERO);
	}
	return 0;
}

int lm_wire_get_missing(const void *p, size_t len, struct lm_postcopy_stats *ret, struct lm_error *err)
{
	const struct lm_wire_missing *m = p;

	if (len != sizeof(*m))
		return bad(err, "MISSING: length");
	*ret = (struct lm_postcopy_stats){
		.used = true,
		.left_pages = lm_le64_get(m->left_pages), .missing_pages = lm_le64_get(m->missing_pages),
		.bytes = lm_le64_get(m->bytes), .faults = lm_le64_get(m->faults),
		.fault_p50_ns = (int64_t)(lm_le64_get(m->p50_ns) & INT64_MAX),
		.fault_p99_ns = (int64_t)(lm_le64_get(m->p99_ns) & INT64_MAX),
		.fault_max_ns = (int64_t)(lm_le64_get(m->max_ns) & INT64_MAX),
		.waited_ns = (int64_t)(lm_le64_get(m->waited_ns) & INT64_MAX),
		.duration_ns = (int64_t)(lm_le64_get(m->duration_ns) & INT64_MAX),
	};
	return 0;
}

int lm_wire_get_fixed(const void *p, size_t len, const char *what, void *ret, size_t size, struct lm_error *err)
{
	if (len != size)
		return bad(err, what);
	memcpy(ret, p, size);
	return 0;
}

int lm_wire_get_u32(const void *p, size_t len, const char *what, uint32_t *ret, struct lm_error *err)
{
	const struct le32 *v = p;

	if (len != sizeof(*v))
		return bad(err, what);
	*ret = lm_le32_get(*v);
	return 0;
}

int lm_wire_get_saved(const void *p, size_t len, struct lm_wire_saved *ret, struct lm_error *err)
{
	if (len != sizeof(*ret))
		return bad(err, "SAVED: length");
	memcpy(ret, p, sizeof(*ret));
	return 0;
}

int lm_wire_get_locks(const void *p, size_t len, unsigned nlocks, struct lm_lock_notes *ret, struct lm_error *err)
{
	if (!nlocks || nlocks > LM_LOCKS_MAX || len != (size_t)nlocks * LM_LOCK_NOTE_SIZE)
		return bad(err, "number of notes about storage locks");
	ret->n = nlocks;
	memcpy(ret->note, p, len);
	return 0;
}

int lm_wire_get_times(const void *p, size_t len, int64_t *ret_load_ns, int64_t *ret_resume_ns,
		      struct lm_error *err)
{
	const struct lm_wire_times *t = p;
	uint64_t load, resume;

	if (len != sizeof(*t))
		return bad(err, "times: length");
	load = lm_le64_get(t->load_ns);
	resume = lm_le64_get(t->resume_ns);
	if (load > INT64_MAX || resume > INT64_MAX)
		return bad(err, "times: negative");
	*ret_load_ns = (int64_t)load;
	*ret_resume_ns = (int64_t)resume;
	return 0;
}

size_t lm_wire_put_abort(void *buf, int code, const char *text)
{
	struct lm_wire_abort *a = buf;
	size_t len = strnlen(text, LM_ERROR_MSG_MAX - 1);

	a->code = lm_le32((uint32_t)(code < 0 ? -code : code));
	a->len = lm_le32((uint32_t)len);
	memcpy(a + 1, text, len);
	return sizeof(*a) + len;
}

int lm_wire_get_abort(const void *p, size_t len, int *ret_code, char *text, size_t size,
		      struct lm_error *err)
{
	const struct lm_wire_abort *a = p;
	const char *from = (const char *)(a + 1);
	uint32_t n, code;
	size_t i;

	if (len < sizeof(*a) || lm_le32_get(a->len) != len - sizeof(*a))
		return bad(err, "ABORT: length");
	n = lm_le32_get(a->len);
	code = lm_le32_get(a->code);
	for (i = 0; i < n && i + 1 < size; i++)
		text[i] = isprint((unsigned char)from[i]) ? from[i] : '?';
	text[i] = 0;
	*ret_code = code && code < 4096 ? -(int)code : -ECONNABORTED;
	return 0;
}
