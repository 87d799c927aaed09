/* SPDX-License-Identifier: Apache-2.0 */
/* From the pause until the guest runs again our threads come before others. */
#include <sys/resource.h>
#include <unistd.h>
#include "sessionpair.h"

/* ---- who comes first ---- */

/* Nice values of the session's thread, by side: while the guest stands still, and at the end. */
struct nices {
	int still, after;
};

static void on_stage(void *opaque, const struct lm_event *e)
{
	struct nices *n = opaque;

	if (e->type == LM_EVENT_STAGE && (!strcmp(e->u.stage.name, "saved") || !strcmp(e->u.stage.name, "loading")))
		n->still = getpriority(PRIO_PROCESS, 0);
	if (e->type == LM_EVENT_STAGE && !strcmp(e->u.stage.name, "done"))
		n->after = getpriority(PRIO_PROCESS, 0);
}

static void move_and_look(struct nices *src, struct nices *dst)
{
	struct pair *p = pair_new(&small);

	p->src_opt.event = p->dst_opt.event = on_stage;
	p->src_opt.event_opaque = src;
	p->dst_opt.event_opaque = dst;
	pair_run(p);
	assert_moved(p);
	pair_free(p);
}

static void skip_if_not_allowed(void)
{
	struct rlimit limit;

	if (geteuid() && (getrlimit(RLIMIT_NICE, &limit) || limit.rlim_cur < 30))
		skip();
}

static void threads_come_first_while_the_guest_stands_still(void **state)
{
	int usual = getpriority(PRIO_PROCESS, 0);
	struct nices src = { 99, 99 }, dst = { 99, 99 };

	(void)state;
	skip_if_not_allowed();
	move_and_look(&src, &dst);
	assert_true(src.still < usual && dst.still < usual);
	assert_int_equal(src.after, usual);
	assert_int_equal(dst.after, usual);
	assert_int_equal(getpriority(PRIO_PROCESS, 0), usual);
}

static void without_that_they_wait_as_all_others(void **state)
{
	int usual = getpriority(PRIO_PROCESS, 0);
	struct nices src = { 99, 99 }, dst = { 99, 99 };

	(void)state;
	setenv("LM_BREAK", "urgent", 1);
	move_and_look(&src, &dst);
	unsetenv("LM_BREAK");
	assert_int_equal(src.still, usual);
	assert_int_equal(dst.still, usual);
}

/* Teeth: without the rule "run only after COMMIT" two guests run when the source gives up late. */

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_come_first_while_the_guest_stands_still),
		cmocka_unit_test(without_that_they_wait_as_all_others),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
