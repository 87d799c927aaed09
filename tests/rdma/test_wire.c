/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The RDMA transport over a wire: what only a device can show.  Runs where the network
 * namespaces of argv[1] and argv[2] hold the two ends; else both are here.
 */
#include <poll.h>
#include <time.h>
#include <unistd.h>
#include "rdma/rdma.h"
#include "transport_contract.h"

#define MIB (UINT64_C(1) << 20)

static const struct backend odp = { .name = "rdma", .listen = "rdma", .rdma = true, .pin = LM_PIN_ODP };
static const struct backend pinned = { .name = "rdma", .listen = "rdma", .rdma = true, .pin = LM_PIN_CHUNK, .pinned = true };
static struct lm_error err;

static void sleep_ms(long ms)
{
	nanosleep(&(struct timespec){ ms / 1000, ms % 1000 * 1000000 }, NULL);
}

static struct rd_lane *lane_of(struct lm_transport *t, unsigned i)
{
	return &((struct rdma *)t)->lanes[i];
}

/* Objects of this process that the kernel knows, by `rdma resource`: "qp", "mr", ... */
static unsigned resources(const char *kind)
{
	char command[128], line[512], mine[32];
	unsigned n = 0;
	FILE *f;

	snprintf(command, sizeof(command), "rdma resource show %s", kind);
	snprintf(mine, sizeof(mine), " pid %d ", (int)getpid());
	f = popen(command, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, mine) != NULL;
	pclose(f);
	return n;
}

static void assert_no_resources(void)
{
	assert_int_equal(resources("qp"), 0);
	assert_int_equal(resources("mr"), 0);
	assert_int_equal(resources("cq"), 0);
}

static void a_long_run_arrives_whole(void **state)
{
	struct rig *rig = rig_open(*state, 1, 128 * MIB);
	struct lm_run run = data_run(1, 0, 128 * MIB);

	pump_start(rig, 0);
	assert_true(resources("qp") > 0);
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	expect_data(rig, 1, 0, 128 * MIB);
	rig_free(rig);
	assert_no_resources();
}

/* One page, so that both ends have keys. */
static struct rig *rig_warm(const struct backend *b, unsigned nlanes)
{
	struct rig *rig = rig_open(b, nlanes, 64 * PAGE);

	pump_start_all(rig);
	for (unsigned i = 0; i < nlanes; i++) {
		struct lm_run run = data_run(0, i * PAGE, PAGE);

		assert_int_equal(send_runs(rig, i, &run, 1), 0);
	}
	return rig;
}

/* What the source's device is told must not be believed by the destination's. */
static void expect_refused(struct rig *rig)
{
	struct lm_run bad = data_run(0, 40 * PAGE, PAGE), good = data_run(1, 0, PAGE);

	assert_true(send_runs(rig, 0, &bad, 1) < 0);
	expect_byte(rig, 0, 2 * PAGE, 62 * PAGE, OLD_BYTE);
	assert_int_equal(send_runs(rig, 1, &good, 1), 0);
	expect_data(rig, 1, 0, PAGE);
	rig_free(rig);
	assert_no_resources();
}

static void a_wrong_rkey_kills_its_lane_and_writes_nothing(void **state)
{
	struct rig *rig = rig_warm(*state, 2);

	lane_of(rig->src.t, 0)->peer[0].chunks[0].rkey ^= 0x5a00;
	expect_refused(rig);
}

static void a_write_outside_of_the_region_kills_its_lane_and_writes_nothing(void **state)
{
	struct rig *rig = rig_warm(*state, 2);

	lane_of(rig->src.t, 0)->peer[0].chunks[0].address += 64 * PAGE;
	expect_refused(rig);
}

static void a_fetch_outside_of_the_region_kills_its_lane_and_reads_nothing(void **state)
{
	struct rig *rig = rig_open_pull(*state, 2, 64 * PAGE);
	struct lm_run good = data_run(0, 0, PAGE), bad = data_run(0, 40 * PAGE, PAGE);

	pump_start_all(rig);
	assert_int_equal(fetch_runs(rig, 0, &good, 1), 0);
	lane_of(rig->dst.t, 0)->peer[0].chunks[0].address += 64 * PAGE;
	assert_true(fetch_runs(rig, 0, &bad, 1) < 0);
	expect_byte(rig, 0, PAGE, 63 * PAGE, OLD_BYTE);
	good.region = 1;
	assert_int_equal(fetch_runs(rig, 1, &good, 1), 0);
	rig_free(rig);
	assert_no_resources();
}

/* What a pre-copy lane may write with, a post-copy lane may not. */
static void the_source_cannot_write_over_a_lane_that_fetches(void **state)
{
	struct rig *rig = rig_open_pull(*state, 1, 64 * PAGE);
	struct lm_run run = data_run(0, 0, PAGE);
	struct rd_lane *l = lane_of(rig->src.t, 0);
	const struct rd_mem *there = ((struct rdma *)rig->dst.t)->uses[0].mem[0];
	struct ibv_mr *writable;
	struct rd_piece p;

	pump_start(rig, 0);
	assert_int_equal(fetch_runs(rig, 0, &run, 1), 0);
	pump_stop(rig, 0);
	writable = ibv_reg_mr(there->dev->pd, there->host, 64 * PAGE, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	assert_non_null(writable);
	p = (struct rd_piece){ .local = (uintptr_t)l->buffers, .lkey = l->buffers_mr->lkey, .len = PAGE,
			       .remote = (uintptr_t)there->host + 9 * PAGE, .rkey = writable->rkey };
	rig->src.t->direction = LM_PUSH; /* so that it writes */
	assert_int_equal(rd_post_data(l, &p, &err), 0);
	assert_int_equal(rd_post_batch(l, &err), 0);
	sleep_ms(300);
	expect_byte(rig, 0, 9 * PAGE, PAGE, OLD_BYTE);
	rig->src.t->direction = LM_PULL;
	ibv_dereg_mr(writable);
	rig_free(rig);
}

static void a_write_after_close_fails_and_leaves_memory_unchanged(void **state)
{
	struct rig *rig = rig_warm(*state, 1);
	struct lm_run run = data_run(0, 8 * PAGE, 16 * PAGE);

	pump_stop(rig, 0);
	lm_transport_free(rig->dst.t);
	rig->dst.t = NULL;
	assert_true(send_runs(rig, 0, &run, 1) < 0);
	expect_byte(rig, 0, 8 * PAGE, 16 * PAGE, OLD_BYTE);
	rig_free(rig);
}

/* Pages of a guest that may give them back are copied: no memory of it is registered. */
static void a_guest_with_a_balloon_is_not_registered_at_the_source(void **state)
{
	struct rig *rig = rig_new(*state, 1, 16 * MIB, false);
	struct lm_ram ram = { .regions = rig->src.region, .nregions = RIG_REGIONS, .may_discard = true };
	struct lm_run run = data_run(0, 0, 16 * MIB);

	rig->params[LM_SOURCE].ram = &ram;
	rig_connect(rig);
	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	expect_data(rig, 0, 0, 16 * MIB);
	assert_non_null(strstr(rig->src.t->info, "copied"));
	rig_free(rig);
	assert_no_resources();
}

/*
 * The user library of soft-RoCE gives no advice to the kernel, which takes it (Linux 7.3).  What the
 * libraries of other devices call is exported for them alone, hence the declaration.
 */
int ibv_cmd_advise_mr(struct ibv_pd *pd, enum ibv_advise_mr_advice advice, uint32_t flags, struct ibv_sge *sges, uint32_t n);

static _Atomic unsigned advised_pages;
static _Atomic int advice_refused;

static int advise(struct ibv_pd *pd, enum ibv_advise_mr_advice advice, uint32_t flags, struct ibv_sge *sges, uint32_t n)
{
	int r = ibv_cmd_advise_mr(pd, advice, flags, sges, n);

	if (r)
		atomic_store(&advice_refused, r);
	for (uint32_t i = 0; i < n; i++)
		atomic_fetch_add(&advised_pages, sges[i].length / PAGE);
	return r;
}

/* At the destination: of memory that may only be read locally soft-RoCE takes none (EINVAL). */
static void take_advice(struct lm_transport *t)
{
	if (t->side == LM_DEST)
		verbs_get_ctx(lane_of(t, 0)->use->dev->verbs)->advise_mr = advise;
}

/* All of the memory exists: the kernel looks it up before a packet needs it. */
static void what_is_prefetched_by_the_kernel_arrives_as_ever(void **state)
{
	struct rig *rig = rig_new(*state, 1, 16 * MIB, false);
	struct lm_run run = data_run(1, 0, 16 * MIB);

	rig->after_open = take_advice;
	rig_connect(rig);
	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	expect_data(rig, 1, 0, 16 * MIB);
	assert_int_equal(atomic_load(&advice_refused), 0);
	assert_true(atomic_load(&advised_pages) >= 16 * MIB / PAGE);
	assert_null(strstr(rig->dst.t->info, "no prefetch"));
	rig_free(rig);
	assert_no_resources();
}

static void a_lane_says_which_devices_and_how(void **state)
{
	struct rig *rig = rig_open(*state, 2, 64 * PAGE);

	print_message("%s\n", rig->src.t->info);
	assert_non_null(strstr(rig->src.t->info, "x"));
	rig_free(rig);
}

/* ---- strangers ---- */

struct stranger {
	const uint8_t *endpoint;
	bool polite;   /* shows something of the right length */
	int last_event;
	pthread_t thread;
};

/* Connects to the first rail and then says nothing more. */
static void *stranger_main(void *arg)
{
	struct stranger *s = arg;
	struct rd_rail rails[RDMA_RAILS_MAX];
	struct rdma_event_channel *channel;
	struct rd_hello hello = { .magic = lm_le32(RDMA_HELLO_MAGIC), .version = lm_le16(RDMA_VERSION), .nlanes = lm_le16(1) };
	struct rdma_conn_param param = { .private_data = s->polite ? &hello : NULL,
					 .private_data_len = s->polite ? sizeof(hello) : 0 };
	struct ibv_qp_init_attr qp = { .qp_type = IBV_QPT_RC, .cap = { .max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 1,
								      .max_recv_sge = 1 } };
	struct rdma_cm_id *id;
	struct rd_event e;
	unsigned n;

	s->last_event = -1;
	if (rd_endpoint_get(s->endpoint, rails, &n, NULL) || rd_channel_make(&channel))
		return NULL;
	rdma_create_id(channel, &id, NULL, RDMA_PS_TCP);
	rdma_resolve_addr(id, NULL, &rails[0].addr.sa, 2000);
	for (int i = 0; i < 100 && s->last_event != RDMA_CM_EVENT_REJECTED; i++) {
		struct pollfd p = { .fd = channel->fd, .events = POLLIN };

		poll(&p, 1, 50);
		if (rd_event_next(channel, &e))
			continue;
		s->last_event = e.type;
		if (e.type == RDMA_CM_EVENT_ADDR_RESOLVED)
			rdma_resolve_route(id, 2000);
		if (e.type == RDMA_CM_EVENT_ROUTE_RESOLVED && !rdma_create_qp(id, NULL, &qp))
			rdma_connect(id, &param);
	}
	if (id->qp)
		rdma_destroy_qp(id);
	rdma_destroy_id(id);
	rdma_destroy_event_channel(channel);
	return NULL;
}

static void strangers_are_refused_and_keep_nobody_out(void **state)
{
	struct rig *rig = rig_new(*state, 2, 64 * PAGE, false);
	struct stranger strangers[2] = { { .endpoint = rig->endpoint, .polite = true }, { .endpoint = rig->endpoint } };
	struct lm_run run = data_run(0, 0, PAGE);

	rig_before_open(rig, stranger_main, &strangers[0], &strangers[0].thread);
	rig_before_open(rig, stranger_main, &strangers[1], &strangers[1].thread);
	rig_connect(rig);
	for (unsigned i = 0; i < 2; i++) {
		pthread_join(strangers[i].thread, NULL);
		assert_int_equal(strangers[i].last_event, RDMA_CM_EVENT_REJECTED);
	}
	pump_start(rig, 0);
	assert_int_equal(send_runs(rig, 0, &run, 1), 0);
	rig_free(rig);
	assert_no_resources();
}

static void a_source_that_never_comes_is_waited_for_until_the_deadline(void **state)
{
	struct rig *rig = rig_new(*state, 1, 64 * PAGE, false);
	int64_t start = lm_now_ns();

	rig->params[LM_DEST].deadline_ns = start + LM_NS_PER_S;
	assert_int_equal(lm_transport_listen(rig->dst.t, &rig->params[LM_DEST], rig->endpoint, &err), 0);
	assert_int_equal(lm_transport_open(rig->dst.t, &rig->params[LM_DEST], &err), -ETIMEDOUT);
	assert_true(lm_now_ns() - start < 3 * LM_NS_PER_S);
	rig_free(rig);
	assert_no_resources();
}

static void a_silent_source_does_not_hold_the_destination(void **state)
{
	struct rig *rig = rig_open(*state, 2, 64 * PAGE);
	struct lm_poll_result res;
	int64_t start;

	assert_int_equal(lm_transport_poll(rig->dst.t, 0, 300, &res, &err), 0);
	start = lm_now_ns();
	lm_transport_free(rig->dst.t);
	rig->dst.t = NULL;
	assert_true(lm_now_ns() - start < 2 * LM_NS_PER_S);
	sleep_ms(10);
	rig_free(rig);
	assert_no_resources();
}

static void without_insecure_nothing_is_opened(void **state)
{
	struct rig *rig = rig_new(*state, 1, 64 * PAGE, false);

	rig->params[LM_DEST].insecure = false;
	assert_int_equal(lm_transport_listen(rig->dst.t, &rig->params[LM_DEST], rig->endpoint, &err), -EACCES);
	rig_free(rig);
}

static void a_rail_that_is_not_there_is_named(void **state)
{
	static const char *const rails[] = { "nonesuch0:1" };
	struct rig *rig = rig_new(*state, 1, 64 * PAGE, false);

	rig->params[LM_DEST].rails = rails;
	rig->params[LM_DEST].nrails = 1;
	assert_int_equal(lm_transport_listen(rig->dst.t, &rig->params[LM_DEST], rig->endpoint, &err), -ENODEV);
	assert_non_null(strstr(err.msg, "nonesuch0"));
	rig_free(rig);
}

#define WITH(fn, b) { #fn, fn, NULL, NULL, (void *)&(b) }

int main(int argc, char *argv[])
{
	const struct CMUnitTest tests[] = {
		WITH(a_long_run_arrives_whole, odp),
		WITH(a_wrong_rkey_kills_its_lane_and_writes_nothing, odp),
		WITH(a_wrong_rkey_kills_its_lane_and_writes_nothing, pinned),
		WITH(a_write_outside_of_the_region_kills_its_lane_and_writes_nothing, odp),
		WITH(a_write_outside_of_the_region_kills_its_lane_and_writes_nothing, pinned),
		WITH(a_fetch_outside_of_the_region_kills_its_lane_and_reads_nothing, odp),
		WITH(a_fetch_outside_of_the_region_kills_its_lane_and_reads_nothing, pinned),
		WITH(the_source_cannot_write_over_a_lane_that_fetches, pinned),
		WITH(a_write_after_close_fails_and_leaves_memory_unchanged, odp),
		WITH(a_write_after_close_fails_and_leaves_memory_unchanged, pinned),
		WITH(a_guest_with_a_balloon_is_not_registered_at_the_source, pinned),
		WITH(what_is_prefetched_by_the_kernel_arrives_as_ever, odp),
		WITH(a_lane_says_which_devices_and_how, odp),
		WITH(strangers_are_refused_and_keep_nobody_out, odp),
		WITH(a_source_that_never_comes_is_waited_for_until_the_deadline, odp),
		WITH(a_silent_source_does_not_hold_the_destination, odp),
		WITH(without_insecure_nothing_is_opened, odp),
		WITH(a_rail_that_is_not_there_is_named, odp),
	};
	char why[256];

	rig_namespaces(argc > 2 ? argv[1] : NULL, argc > 2 ? argv[2] : NULL);
	if (!lm_rdma_usable(NULL, NULL, 0, why, sizeof(why))) {
		printf("skipped: %s\n", why);
		return 77;
	}
	if (argc > 3)
		cmocka_set_test_filter(argv[3]);
	return cmocka_run_group_tests_name("rdma over a wire", tests, NULL, NULL);
}
