/* SPDX-License-Identifier: Apache-2.0 */
/* Fault points and broken rules. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include "unit.h"
#include "engine/base/testhook.h"

static struct lm_error err;

static int point(const char *faults, const char *stage)
{
	setenv("LM_FAULT", faults, 1);
	lm_err_clear(&err);
	return lm_fault_point(stage, &err);
}

static void without_the_variable_nothing_happens(void **state)
{
	(void)state;
	unsetenv("LM_FAULT");
	unsetenv("LM_BREAK");
	assert_int_equal(lm_fault_point("open", &err), 0);
	assert_false(lm_broken("drain"));
}

static void an_error_comes_at_its_stage_only(void **state)
{
	(void)state;
	assert_int_equal(point("copied:error", "copied"), -EIO);
	assert_int_equal(err.code, -EIO);
	assert_non_null(strstr(err.msg, "copied"));
	assert_int_equal(point("copied:error", "copy"), 0);
	assert_int_equal(point("copied:error", "copied2"), 0);
	assert_int_equal(point("", "copied"), 0);
	assert_int_equal(point(",,", "copied"), 0);
}

static void a_list_has_a_fault_for_each_of_its_stages(void **state)
{
	(void)state;
	assert_int_equal(point("open:sleep=1,copied:error,loaded:error", "open"), 0);
	assert_int_equal(point("open:sleep=1,copied:error,loaded:error", "copied"), -EIO);
	assert_int_equal(point("open:sleep=1,copied:error,loaded:error", "loaded"), -EIO);
	assert_int_equal(point("open:sleep=1,copied:error,loaded:error", "saved"), 0);
}

static void faults_of_one_stage_happen_in_order(void **state)
{
	int64_t begin = lm_now_ns();

	(void)state;
	assert_int_equal(point("open:sleep=30,open:error", "open"), -EIO);
	assert_true(lm_now_ns() - begin >= 30 * LM_NS_PER_MS);
}

static void a_command_runs_and_the_stage_goes_on(void **state)
{
	char path[] = "/tmp/testhook-XXXXXX", action[64];

	(void)state;
	close(mkstemp(path));
	snprintf(action, sizeof(action), "open:run=rm %s", path);
	assert_int_equal(point(action, "open"), 0);
	assert_int_equal(access(path, F_OK), -1);
}

static void assert_dies(const char *faults, int signal_wanted)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		signal(SIGABRT, SIG_DFL); /* a sanitizer would turn it into an exit */
		close(STDERR_FILENO);
		point(faults, "open");
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), signal_wanted);
}

static void kill_ends_the_process(void **state)
{
	(void)state;
	assert_dies("open:kill", SIGKILL);
}

static void a_fault_that_is_not_known_must_not_pass_unnoticed(void **state)
{
	(void)state;
	assert_dies("open:eror", SIGABRT);
}

static void only_the_named_rules_are_broken(void **state)
{
	(void)state;
	setenv("LM_BREAK", "drain,commit", 1);
	assert_true(lm_broken("drain"));
	assert_true(lm_broken("commit"));
	assert_false(lm_broken("com"));
	assert_false(lm_broken("commit2"));
	assert_false(lm_broken(""));
	unsetenv("LM_BREAK");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(without_the_variable_nothing_happens),
		cmocka_unit_test(an_error_comes_at_its_stage_only),
		cmocka_unit_test(a_list_has_a_fault_for_each_of_its_stages),
		cmocka_unit_test(faults_of_one_stage_happen_in_order),
		cmocka_unit_test(a_command_runs_and_the_stage_goes_on),
		cmocka_unit_test(kill_ends_the_process),
		cmocka_unit_test(a_fault_that_is_not_known_must_not_pass_unnoticed),
		cmocka_unit_test(only_the_named_rules_are_broken),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
