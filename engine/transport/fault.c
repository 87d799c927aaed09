/* SPDX-License-Identifier: Apache-2.0 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "engine/base/cleanup.h"
#include "engine/base/clock.h"
#include "fault.h"

/* LM_PULL: a run of which something will be falsified as soon as it is whole.  Lane thread only. */
struct spoil {
	uint64_t taken;  /* runs that this lane has taken */
	uint64_t due;    /* falsify when so many are whole; 0: nothing to do */
	struct lm_run run;
	uint8_t old[LM_PAGE_SIZE]; /* what the last page of the run held before */
};

struct fault {
	struct lm_transport base;
	struct lm_transport_ops ops; /* no more than the inner one has */
	struct lm_transport *inner;
	struct lm_fault_options o;
	_Atomic uint64_t bytes, writes, flushes; /* of the lanes that match */
	_Atomic bool fired;
	uint8_t *host[LM_REGIONS_MAX];
	struct spoil *spoils; /* one per lane */
	pthread_mutex_t mutex;
	int reopening;        /* under mutex: this lane nobody may shut; -1: none */
	_Atomic uint64_t fenced; /* lanes */
};

static struct fault *fault_of(struct lm_transport *t)
{
	return (struct fault *)t;
}

static bool lane_matches(const struct fault *f, unsigned lane)
{
	return f->o.action != LM_FAULT_NONE && (f->o.lane < 0 || f->o.lane == (int)lane);
}

/* Once, or whenever asked. */
static bool fire(struct fault *f)
{
	return !atomic_exchange(&f->fired, true) || f->o.repeat;
}

static bool due_by_bytes(struct fault *f, unsigned lane)
{
	return lane_matches(f, lane) && !f->o.write && !f->o.flush && atomic_load(&f->bytes) >= f->o.after;
}

static bool is_of_data(enum lm_fault_action a)
{
	return a == LM_FAULT_CORRUPT || a == LM_FAULT_TRUNCATE || a == LM_FAULT_STRAY;
}

static void sleep_ms(unsigned ms)
{
	struct timespec t = { ms / 1000, (long)(ms % 1000) * LM_NS_PER_MS };

	nanosleep(&t, NULL);
}

static void cut_all(struct fault *f)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&f->mutex);

	for (unsigned i = 0; i < f->base.nlanes; i++)
		if ((int)i != f->reopening)
			lm_transport_shut(f->inner, i);
}

static void disturb(struct fault *f, unsigned lane)
{
	switch (f->o.action) {
	case LM_FAULT_CUT:
		lm_transport_shut(f->inner, lane);
		break;
	case LM_FAULT_CUT_ALL:
		cut_all(f);
		break;
	case LM_FAULT_DELAY:
		sleep_ms(f->o.delay_ms);
		break;
	default:
		break;
	}
}

static int fault_listen(struct lm_transport *t, const struct lm_transport_params *p,
			uint8_t ret_endpoint[LM_ENDPOINT_SIZE], struct lm_error *err)
{
	return lm_transport_listen(fault_of(t)->inner, p, ret_endpoint, err);
}

static int fault_open(struct lm_transport *t, const struct lm_transport_params *p, struct lm_error *err)
{
	struct fault *f = fault_of(t);
	int r;

	free(f->spoils);
	f->spoils = calloc(p->nlanes, sizeof(*f->spoils));
	if (!f->spoils)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	r = lm_transport_open(f->inner, p, err);
	if (!r)
		snprintf(t->info, sizeof(t->info), "faulty %.100s", f->inner->info);
	return r;
}

static int fault_region_add(struct lm_transport *t, unsigned index, const struct lm_region *region,
			    struct lm_key *ret_key, struct lm_error *err)
{
	struct fault *f = fault_of(t);

	f->host[index] = region->host;
	if (f->o.action == LM_FAULT_REGISTER)
		sleep_ms(f->o.delay_ms);
	return lm_transport_region_add(fault_of(t)->inner, region, ret_key, err);
}

static int fault_region_bind(struct lm_transport *t, unsigned index, const struct lm_key *key,
			     struct lm_error *err)
{
	return lm_transport_region_bind(fault_of(t)->inner, index, key, err);
}

static uint64_t data_bytes(const struct lm_run *runs, unsigned n)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < n; i++)
		sum += runs[i].kind == LM_RUN_DATA ? runs[i].len : 0;
	return sum;
}

/* One run goes out changed: how many runs the caller may forget, or what write says. */
static int write_changed(struct fault *f, unsigned lane, struct lm_run run, struct lm_error *err)
{
	if (f->o.action == LM_FAULT_CORRUPT) {
		run.kind = LM_RUN_ZERO;
		return lm_transport_write(f->inner, lane, &run, 1, err);
	}
	if (f->o.action == LM_FAULT_TRUNCATE) {
		run.len -= LM_PAGE_SIZE;
		return run.len ? lm_transport_write(f->inner, lane, &run, 1, err) : 1;
	}
	/* Past the wrapper, which would not let it through. */
	run.kind = LM_RUN_ZERO;
	run.offset = f->base.region_size[run.region];
	return f->inner->ops->write(f->inner, lane, &run, 1, err);
}

static bool write_due(struct fault *f, unsigned lane)
{
	uint64_t nth = lane_matches(f, lane) ? atomic_fetch_add(&f->writes, 1) + 1 : 0;

	return due_by_bytes(f, lane) || (f->o.write && nth >= f->o.write);
}

static int fault_write(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err)
{
	struct fault *f = fault_of(t);
	int r;

	if (write_due(f, lane) && (!is_of_data(f->o.action) || runs[0].kind == LM_RUN_DATA) && fire(f)) {
		if (is_of_data(f->o.action)) {
			r = write_changed(f, lane, runs[0], err);
			if (r < 0 && !f->o.repeat)
				atomic_store(&f->fired, false); /* the lane was full: next time */
			return r < 0 || f->o.action != LM_FAULT_STRAY ? r : -EAGAIN;
		}
		disturb(f, lane);
	}
	r = lm_transport_write(f->inner, lane, runs, n, err);
	if (r > 0 && lane_matches(f, lane))
		atomic_fetch_add(&f->bytes, data_bytes(runs, (unsigned)r));
	return r;
}

/* ---- LM_PULL ---- */

/* One run is fetched, and what comes will be falsified; or a stray one is. */
static int fetch_changed(struct fault *f, unsigned lane, struct lm_run run, struct lm_error *err)
{
	struct spoil *s = &f->spoils[lane];
	int r;

	if (f->o.action == LM_FAULT_STRAY) {
		run.offset = f->base.region_size[run.region];
		return f->inner->ops->fetch(f->inner, lane, &run, 1, err);
	}
	if (s->due)
		return -EAGAIN; /* one at a time */
	memcpy(s->old, f->host[run.region] + run.offset + run.len - LM_PAGE_SIZE, LM_PAGE_SIZE);
	r = lm_transport_fetch(f->inner, lane, &run, 1, err);
	if (r < 0)
		return r;
	s->run = run;
	s->due = ++s->taken;
	return r;
}

static void spoil_if_due(struct fault *f, unsigned lane, uint64_t whole)
{
	struct spoil *s = &f->spoils[lane];
	uint8_t *p = f->host[s->run.region] + s->run.offset;

	if (!s->due || whole < s->due)
		return;
	if (f->o.action == LM_FAULT_CORRUPT)
		memset(p, 0, s->run.len);
	else
		memcpy(p + s->run.len - LM_PAGE_SIZE, s->old, LM_PAGE_SIZE);
	s->due = 0;
}

static int fault_fetch(struct lm_transport *t, unsigned lane, const struct lm_run *runs, unsigned n,
		       struct lm_error *err)
{
	struct fault *f = fault_of(t);
	int r;

	if (write_due(f, lane) && fire(f)) {
		if (is_of_data(f->o.action)) {
			r = fetch_changed(f, lane, runs[0], err);
			if (r < 0 && !f->o.repeat)
				atomic_store(&f->fired, false); /* the lane was full: next time */
			return r < 0 || f->o.action != LM_FAULT_STRAY ? r : -EAGAIN;
		}
		disturb(f, lane);
	}
	r = lm_transport_fetch(f->inner, lane, runs, n, err);
	if (r > 0)
		f->spoils[lane].taken += (unsigned)r;
	return r;
}

static int fault_flush(struct lm_transport *t, unsigned lane, uint64_t seq, struct lm_error *err)
{
	struct fault *f = fault_of(t);
	uint64_t nth = lane_matches(f, lane) ? atomic_fetch_add(&f->flushes, 1) + 1 : 0;

	if (!is_of_data(f->o.action) && (due_by_bytes(f, lane) || (f->o.flush && nth >= f->o.flush)) && fire(f))
		disturb(f, lane);
	return lm_transport_flush(f->inner, lane, seq, err);
}

static int fault_poll(struct lm_transport *t, unsigned lane, int timeout_ms, int wake_fd,
		      struct lm_poll_result *res, struct lm_error *err)
{
	struct fault *f = fault_of(t);
	int r;

	if (!is_of_data(f->o.action) && due_by_bytes(f, lane) && fire(f))
		disturb(f, lane);
	r = lm_transport_poll_or(f->inner, lane, timeout_ms, wake_fd, res, err);
	if ((t->side == LM_DEST || t->direction == LM_PULL) && lane_matches(f, lane))
		atomic_fetch_add(&f->bytes, res->bytes);
	if (t->side == LM_DEST && t->direction == LM_PULL && is_of_data(f->o.action))
		spoil_if_due(f, lane, res->fetched);
	return r;
}

static void fault_shut(struct lm_transport *t, unsigned lane)
{
	lm_transport_shut(fault_of(t)->inner, lane);
}

static void fault_fence(struct lm_transport *t, unsigned lane)
{
	atomic_fetch_or(&fault_of(t)->fenced, UINT64_C(1) << lane);
	lm_transport_fence_lane(fault_of(t)->inner, lane);
}

static void set_reopening(struct fault *f, int lane)
{
	LM_AUTO_UNLOCK pthread_mutex_t *guard = lm_mutex_lock(&f->mutex);

	f->reopening = lane;
}

static int fault_reopen(struct lm_transport *t, unsigned lane, const struct lm_transport_params *p,
			struct lm_error *err)
{
	struct fault *f = fault_of(t);
	int r;

	if (f->o.stay)
		return lm_err(err, -EHOSTUNREACH, LM_SCOPE_LANE, "a fault keeps it out");
	if (t->side == LM_DEST && !(atomic_load(&f->fenced) >> lane & 1))
		return lm_err(err, -EINVAL, LM_SCOPE_LANE, "nobody has fenced it");
	memset(&f->spoils[lane], 0, sizeof(f->spoils[lane]));
	set_reopening(f, (int)lane);
	r = lm_transport_reopen(f->inner, lane, p, err);
	set_reopening(f, -1);
	if (!r)
		atomic_fetch_and(&f->fenced, ~(UINT64_C(1) << lane));
	return r;
}

static void fault_close(struct lm_transport *t)
{
	lm_transport_free(fault_of(t)->inner);
	free(fault_of(t)->spoils);
	pthread_mutex_destroy(&fault_of(t)->mutex);
	free(t);
}

static const struct lm_transport_ops fault_ops = {
	.name = "fault",
	.listen = fault_listen,
	.open = fault_open,
	.region_add = fault_region_add,
	.region_bind = fault_region_bind,
	.write = fault_write,
	.fetch = fault_fetch,
	.flush = fault_flush,
	.poll = fault_poll,
	.shut = fault_shut,
	.fence = fault_fence,
	.reopen = fault_reopen,
	.close = fault_close,
};

struct lm_transport *lm_transport_fault_new(struct lm_transport *inner, const struct lm_fault_options *o)
{
	struct fault *f = inner ? calloc(1, sizeof(*f)) : NULL;

	if (!f) {
		lm_transport_free(inner);
		return NULL;
	}
	f->ops = fault_ops;
	if (!inner->ops->listen)
		f->ops.listen = NULL;
	if (!inner->ops->fetch)
		f->ops.fetch = NULL;
	if (!inner->ops->reopen)
		f->ops.reopen = NULL;
	f->base.ops = &f->ops;
	pthread_mutex_init(&f->mutex, NULL);
	f->reopening = -1;
	f->inner = inner;
	f->o = *o;
	return &f->base;
}

/* ---- options ---- */

static int parse_number(const char *text, uint64_t *ret)
{
	char *end;

	errno = 0;
	*ret = strtoull(text, &end, 10);
	return *text < '0' || *text > '9' || *end || errno ? -EINVAL : 0;
}

static int parse_action(const char *text, struct lm_fault_options *o)
{
	static const char *const names[] = {
		[LM_FAULT_CUT] = "cut", [LM_FAULT_CUT_ALL] = "cut-all", [LM_FAULT_CORRUPT] = "corrupt",
		[LM_FAULT_TRUNCATE] = "truncate", [LM_FAULT_STRAY] = "stray",
	};
	uint64_t ms;

	if (!strncmp(text, "delay=", 6) || !strncmp(text, "register=", 9)) {
		if (parse_number(strchr(text, '=') + 1, &ms) || ms > 3600000)
			return -EINVAL;
		o->action = *text == 'd' ? LM_FAULT_DELAY : LM_FAULT_REGISTER;
		o->delay_ms = (unsigned)ms;
		return 0;
	}
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i] && !strcmp(names[i], text)) {
			o->action = (enum lm_fault_action)i;
			return 0;
		}
	return -EINVAL;
}

static int parse_pair(const char *key, const char *value, struct lm_fault_options *o)
{
	uint64_t n;

	if (!strcmp(key, "action"))
		return parse_action(value, o);
	if (parse_number(value, &n))
		return -EINVAL;
	if (!strcmp(key, "lane") && n < LM_LANES_MAX)
		o->lane = (int)n;
	else if (!strcmp(key, "after"))
		o->after = n;
	else if (!strcmp(key, "write") && n)
		o->write = n;
	else if (!strcmp(key, "flush") && n)
		o->flush = n;
	else if (!strcmp(key, "repeat") && n <= 1)
		o->repeat = n;
	else if (!strcmp(key, "stay") && n <= 1)
		o->stay = n;
	else
		return -EINVAL;
	return 0;
}

int lm_fault_options_parse(const char *text, struct lm_fault_options *ret, struct lm_error *err)
{
	struct lm_fault_options o = { .lane = -1 };
	char copy[256], *save = NULL;

	snprintf(copy, sizeof(copy), "%s", text);
	for (char *pair = strtok_r(copy, ",", &save); pair; pair = strtok_r(NULL, ",", &save)) {
		char *value = strchr(pair, '=');

		if (value)
			*value++ = 0;
		if (!value || parse_pair(pair, value, &o))
			return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "LM_TRANSPORT_FAULT: bad \"%s\"", pair);
	}
	if (o.action == LM_FAULT_NONE)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "LM_TRANSPORT_FAULT: no action");
	*ret = o;
	return 0;
}

struct lm_transport *lm_transport_fault_from_env(struct lm_transport *inner)
{
	const char *text = getenv("LM_TRANSPORT_FAULT");
	struct lm_fault_options o;
	struct lm_error err;

	if (!text || !*text)
		return inner;
	if (lm_fault_options_parse(text, &o, &err)) {
		fprintf(stderr, "%s\n", err.msg); /* a test that tests nothing must not pass */
		abort();
	}
	return lm_transport_fault_new(inner, &o);
}
