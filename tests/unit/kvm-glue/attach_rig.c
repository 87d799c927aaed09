/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "attach_rig.h"
#include "engine/base/clock.h"

struct rig_qemu q;
struct lm_error err;
struct lm_vm *vm;

int attach_pid(enum lm_side side, pid_t pid)
{
	struct lm_qemu_options o = { .qmp = q.qmp, .pid = pid, .side = side, .timeout_ns = LM_NS_PER_S * 5,
				     .cancel_fd = -1 };

	memset(&err, 0, sizeof(err));
	return lm_qemu_attach(&o, &vm, &err);
}

int attach(enum lm_side side)
{
	return attach_pid(side, 0);
}

void assert_attached(int r)
{
	if (r)
		fail_msg("refused: %s", err.msg);
	assert_non_null(vm);
}

void assert_refused(int r, const char *words)
{
	if (!r)
		fail_msg("accepted, wanted: %s", words);
	if (!strstr(err.msg, words))
		fail_msg("\"%s\" does not say \"%s\"", err.msg, words);
}

int attach_teardown(void **state)
{
	(void)state;
	lm_vm_detach(vm);
	vm = NULL;
	rig_end(&q);
	return 0;
}
