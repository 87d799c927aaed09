/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of names of transports: which one is chosen, and that the peer's list is not believed. */
#include "unit.h"
#include "engine/context/negotiate.h"

static struct lm_error err;

static struct lm_ctx *context_with(const char *transport)
{
	struct lm_ctx *c = calloc(1, sizeof(*c));

	lm_options_default(&c->opt);
	c->opt.transport = transport;
	return c;
}

static void a_name_is_found_only_as_a_whole(void **state)
{
	(void)state;
	assert_true(lm_name_in_list("tcp", "tcp"));
	assert_true(lm_name_in_list("tcp", "rdma,tcp"));
	assert_true(lm_name_in_list("tcp", "tcp,rdma"));
	assert_true(lm_name_in_list("tcp", "a,,tcp,b"));
	assert_false(lm_name_in_list("tcp", ""));
	assert_false(lm_name_in_list("tcp", "tcp2,xtcp,tc,t,c,p"));
	assert_false(lm_name_in_list("tcp", "tcp ,TCP"));
	assert_false(lm_name_in_list("", "tcp"));
	assert_false(lm_name_in_list("a,b", "a,b"));
}

static void what_is_offered_are_names_that_exist(void **state)
{
	struct lm_ctx *c = context_with("auto");
	char list[64];

	(void)state;
	assert_ok(lm_ctx_transports(c, "127.0.0.1:1", list, sizeof(list), &err), err);
	assert_true(lm_name_in_list("tcp", list));
	assert_true(strlen(list) < sizeof(((struct lm_open *)0)->transports));
	c->opt.transport = "tcp";
	assert_ok(lm_ctx_transports(c, NULL, list, sizeof(list), &err), err);
	assert_string_equal(list, "tcp");
	assert_fails(lm_ctx_transports(c, NULL, list, 3, &err), -EOVERFLOW, err);
	c->opt.transport = "carrier-pigeon";
	assert_fails(lm_ctx_transports(c, NULL, list, sizeof(list), &err), -ENOTSUP, err);
	assert_non_null(strstr(err.msg, "carrier-pigeon"));
	free(c);
}

static void the_first_of_the_peers_names_that_is_known_is_chosen(void **state)
{
	static const char *const good[] = { "tcp", "tcp,rdma9", "pigeon,tcp", ",,tcp", "a_name_that_is_far_too_long,tcp",
					    "tcp,tcp", "tc,tcpx,tcp," };
	static const char *const bad[] = { "", ",", "pigeon", "tcpx", "TCP", " tcp", "tcp x", ",,,,,,,,",
					   "tcptcptcptcptcptcptcptcptcptcp" };
	struct lm_ctx *c = context_with("tcp");
	char name[LM_TRANSPORT_NAME_MAX];

	(void)state;
	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		assert_ok(lm_ctx_choose(c, good[i], NULL, name, &err), err);
		assert_string_equal(name, "tcp");
	}
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		assert_fails(lm_ctx_choose(c, bad[i], NULL, name, &err), -ENOTSUP, err);
		assert_string_equal(name, "");
	}
	free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_name_is_found_only_as_a_whole),
		cmocka_unit_test(what_is_offered_are_names_that_exist),
		cmocka_unit_test(the_first_of_the_peers_names_that_is_known_is_chosen),
	};

	return cmocka_run_group_tests_name("negotiate", tests, NULL, NULL);
}
