/* SPDX-License-Identifier: Apache-2.0 */
/* Rails: what --rail means, who connects to whom, what travels in the endpoint. */
#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>
#include "rdma/rails.h"

static struct lm_error err;

static struct rd_rail rail(const char *dev, unsigned port, int gid, const char *addr, uint32_t mbps)
{
	struct rd_rail r = { .port = port, .gid = gid, .mbps = mbps, .prefix = 24 };

	strncpy(r.dev, dev, sizeof(r.dev) - 1);
	if (strchr(addr, ':')) {
		r.addr.v6.sin6_family = AF_INET6;
		r.prefix = 64;
		assert_int_equal(inet_pton(AF_INET6, addr, &r.addr.v6.sin6_addr), 1);
	} else {
		r.addr.v4.sin_family = AF_INET;
		assert_int_equal(inet_pton(AF_INET, addr, &r.addr.v4.sin_addr), 1);
	}
	return r;
}

/* ---- --rail ---- */

static void a_rail_is_a_device_a_port_and_a_gid(void **state)
{
	struct rd_rail_spec s;

	(void)state;
	assert_int_equal(rd_rail_spec_parse("mlx5_0", &s, &err), 0);
	assert_string_equal(s.dev, "mlx5_0");
	assert_int_equal(s.port, 0);
	assert_int_equal(s.gid, -1);
	assert_int_equal(rd_rail_spec_parse("mlx5_0:2:3", &s, &err), 0);
	assert_int_equal(s.port, 2);
	assert_int_equal(s.gid, 3);
	assert_int_equal(rd_rail_spec_parse("rxe0:1:0", &s, &err), 0);
	assert_int_equal(s.gid, 0);
}

static void a_rail_that_is_none_is_refused(void **state)
{
	static const char *const bad[] = { "", ":1", "d:", "d:0", "d:256", "d:1:", "d:1:x", "d:1:-1", "d:1:65536", "d:1:2:3",
					   "d:+1", "d: 1", "d:99999999999999999999" };
	struct rd_rail_spec s;
	char longer[100];

	(void)state;
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(rd_rail_spec_parse(bad[i], &s, &err), -EINVAL);
	memset(longer, 'd', sizeof(longer));
	longer[64] = 0;
	assert_int_equal(rd_rail_spec_parse(longer, &s, &err), -EINVAL);
}

static void named_rails_are_kept_in_the_order_of_naming(void **state)
{
	struct rd_rail r[] = { rail("a", 1, 0, "10.0.0.1", 1), rail("b", 1, 2, "10.0.1.1", 1), rail("b", 2, 4, "10.0.2.1", 1) };
	struct rd_rail_spec specs[3] = { { "b", 2, -1 }, { "a", 0, -1 }, { "c", 0, -1 } };

	(void)state;
	assert_int_equal(rd_rails_select(r, 3, specs, 0, &err), 3);
	assert_int_equal(rd_rails_select(r, 3, specs, 2, &err), 2);
	assert_string_equal(r[0].dev, "b");
	assert_int_equal(r[0].port, 2);
	assert_string_equal(r[1].dev, "a");
	assert_int_equal(rd_rails_select(r, 3, specs, 3, &err), 0);
	assert_non_null(strstr(err.msg, "rail c"));
}

/* ---- pairs ---- */

static void each_rail_of_the_peer_is_reached_from_its_network(void **state)
{
	struct rd_rail local[] = { rail("x", 1, 0, "10.0.0.1", 100), rail("y", 1, 0, "10.0.1.1", 100) };
	struct rd_rail peer[] = { rail("", 0, -1, "10.0.1.2", 100), rail("", 0, -1, "10.0.0.2", 100) };
	struct rd_pair p[RDMA_PAIRS_MAX];

	(void)state;
	assert_int_equal(rd_pairs_make(local, 2, false, peer, 2, p), 2);
	assert_int_equal(p[0].local, 1);
	assert_int_equal(p[1].local, 0);
}

static void rails_on_one_network_are_all_used(void **state)
{
	struct rd_rail local[] = { rail("x", 1, 0, "10.0.0.1", 100), rail("y", 1, 0, "10.0.0.3", 100) };
	struct rd_rail peer[] = { rail("", 0, -1, "10.0.0.2", 100), rail("", 0, -1, "10.0.0.4", 100) };
	struct rd_pair p[RDMA_PAIRS_MAX];

	(void)state;
	assert_int_equal(rd_pairs_make(local, 2, false, peer, 2, p), 2);
	assert_int_not_equal(p[0].local, p[1].local);
}

static void the_fastest_come_first(void **state)
{
	struct rd_rail local[] = { rail("x", 1, 0, "10.0.0.1", 100), rail("y", 1, 0, "10.0.1.1", 400) };
	struct rd_rail peer[] = { rail("", 0, -1, "10.0.0.2", 400), rail("", 0, -1, "10.0.1.2", 200) };
	struct rd_pair p[RDMA_PAIRS_MAX];

	(void)state;
	assert_int_equal(rd_pairs_make(local, 2, false, peer, 2, p), 2);
	assert_int_equal(p[0].peer, 1);
	assert_int_equal(p[1].peer, 0);
}

static void named_rails_are_the_only_ones_to_connect_from(void **state)
{
	struct rd_rail local[] = { rail("x", 1, 0, "10.0.0.1", 100), rail("y", 1, 0, "fd00::1", 100) };
	struct rd_rail peer[] = { rail("", 0, -1, "10.7.0.2", 100) };
	struct rd_pair p[RDMA_PAIRS_MAX];

	(void)state;
	assert_int_equal(rd_pairs_make(local, 2, true, peer, 1, p), 1);
	assert_int_equal(p[0].local, 0);
	assert_int_equal(rd_pairs_make(local, 2, false, peer, 1, p), 1);
	assert_int_equal(p[0].local, -1);
	assert_int_equal(rd_pairs_make(local + 1, 1, true, peer, 1, p), 0);
}

static void there_are_never_too_many_pairs(void **state)
{
	struct rd_rail local[RDMA_RAILS_MAX], peer[RDMA_RAILS_MAX];
	struct rd_pair p[RDMA_PAIRS_MAX];

	(void)state;
	for (unsigned i = 0; i < RDMA_RAILS_MAX; i++) {
		local[i] = rail("x", i + 1, 0, "10.0.0.1", i);
		peer[i] = rail("", 0, -1, "10.9.0.1", i);
	}
	assert_int_equal(rd_pairs_make(local, RDMA_RAILS_MAX, true, peer, RDMA_RAILS_MAX, p), RDMA_PAIRS_MAX);
}

static void lanes_are_spread_and_avoid_what_is_dead(void **state)
{
	struct rd_pair p[3] = { { 0, 0, false }, { 1, 1, false }, { 2, 2, false } };
	unsigned used[3] = { 0 };

	(void)state;
	for (unsigned lane = 0; lane < 6; lane++)
		used[rd_pair_choose(p, 3, lane, 0)]++;
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(used[i], 2);
	p[1].dead = true;
	for (unsigned lane = 0; lane < 6; lane++)
		assert_int_not_equal(rd_pair_choose(p, 3, lane, 0), 1);
	p[0].dead = p[2].dead = true;
	assert_int_equal(rd_pair_choose(p, 3, 0, 0), -1);
	assert_int_equal(rd_pair_choose(p, 3, 0, 3), -1);
	assert_int_equal(rd_pair_choose(p, 0, 0, 0), -1);
}

/* ---- endpoint ---- */

static void an_endpoint_comes_out_as_it_went_in(void **state)
{
	struct rd_rail in[RDMA_RAILS_MAX], out[RDMA_RAILS_MAX];
	uint8_t blob[LM_ENDPOINT_SIZE];
	unsigned n = 0;

	(void)state;
	for (unsigned i = 0; i < RDMA_RAILS_MAX; i++) {
		in[i] = rail("dev", 1, 0, i % 2 ? "fd09::2" : "10.9.0.2", 100000 + i);
		rd_addr_set_port(&in[i].addr, (uint16_t)(40000 + i));
	}
	rd_endpoint_put(in, RDMA_RAILS_MAX, blob);
	assert_int_equal(rd_endpoint_get(blob, out, &n, &err), 0);
	assert_int_equal(n, RDMA_RAILS_MAX);
	for (unsigned i = 0; i < n; i++) {
		assert_memory_equal(&out[i].addr, &in[i].addr, sizeof(in[i].addr));
		assert_int_equal(out[i].mbps, in[i].mbps);
	}
}

static void an_endpoint_of_a_liar_is_refused(void **state)
{
	static const char *const bad_addresses[] = { "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::",
						     "ff02::1", "fe80::1", "::ffff:127.0.0.1" };
	struct rd_rail r = rail("d", 1, 0, "10.0.0.1", 1), out[RDMA_RAILS_MAX];
	uint8_t good[LM_ENDPOINT_SIZE], blob[LM_ENDPOINT_SIZE] = { 0 };
	unsigned n;

	(void)state;
	assert_int_equal(rd_endpoint_get(blob, out, &n, &err), -EPROTO); /* a transport that says nothing */
	rd_endpoint_put(&r, 1, blob);
	assert_int_equal(rd_endpoint_get(blob, out, &n, &err), -EPROTO); /* port 0 */
	for (unsigned i = 0; i < sizeof(bad_addresses) / sizeof(bad_addresses[0]); i++) {
		r = rail("d", 1, 0, bad_addresses[i], 1);
		rd_addr_set_port(&r.addr, 7);
		rd_endpoint_put(&r, 1, blob);
		assert_int_equal(rd_endpoint_get(blob, out, &n, &err), -EPROTO);
	}
	r = rail("d", 1, 0, "10.0.0.1", 1);
	rd_addr_set_port(&r.addr, 7);
	rd_endpoint_put(&r, 1, good);
	assert_int_equal(rd_endpoint_get(good, out, &n, &err), 0);
	for (unsigned at = 0; at < 16; at++) { /* every byte of the head counts */
		memcpy(blob, good, sizeof(blob));
		blob[at] ^= 0x80;
		assert_int_equal(rd_endpoint_get(blob, out, &n, &err), -EPROTO);
	}
	memcpy(blob, good, sizeof(blob));
	blob[LM_ENDPOINT_SIZE - 1] = 1; /* behind the last rail */
	assert_int_equal(rd_endpoint_get(blob, out, &n, &err), -EPROTO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_rail_is_a_device_a_port_and_a_gid),
		cmocka_unit_test(a_rail_that_is_none_is_refused),
		cmocka_unit_test(named_rails_are_kept_in_the_order_of_naming),
		cmocka_unit_test(each_rail_of_the_peer_is_reached_from_its_network),
		cmocka_unit_test(rails_on_one_network_are_all_used),
		cmocka_unit_test(the_fastest_come_first),
		cmocka_unit_test(named_rails_are_the_only_ones_to_connect_from),
		cmocka_unit_test(there_are_never_too_many_pairs),
		cmocka_unit_test(lanes_are_spread_and_avoid_what_is_dead),
		cmocka_unit_test(an_endpoint_comes_out_as_it_went_in),
		cmocka_unit_test(an_endpoint_of_a_liar_is_refused),
	};

	return cmocka_run_group_tests_name("rdma rails", tests, NULL, NULL);
}
