/* SPDX-License-Identifier: Apache-2.0 */
/* Post-copy, destination: how far it is, and whether the VM is lost. */
#include <poll.h>
#include "engine/base/clock.h"
#include "both.h"

void lm_postcopy_collect_stats(struct lm_postcopy_dest *p)
{
	struct lm_postcopy_stats *stats = &p->both.c->summary.postcopy;

	stats->used = true;
	lm_arrival_stats(&p->puller.arrival, stats);
	stats->bytes = atomic_load(&p->puller.bytes);
	stats->duration_ns = lm_now_ns() - p->both.began_ns;
}

int lm_postcopy_send_status(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct lm_ctx *c = p->both.c;
	const struct lm_postcopy_stats *t = &c->summary.postcopy;
	struct lm_wire_missing m;

	lm_postcopy_collect_stats(p);
	m = (struct lm_wire_missing){
		lm_le64(t->left_pages), lm_le64(t->missing_pages), lm_le64(t->bytes), lm_le64(t->faults),
		lm_le64((uint64_t)t->fault_p50_ns), lm_le64((uint64_t)t->fault_p99_ns),
		lm_le64((uint64_t)t->fault_max_ns), lm_le64((uint64_t)t->waited_ns), lm_le64((uint64_t)t->duration_ns),
	};
	lm_postcopy_event(&p->both, t);
	if (!c->control.stream)
		return 0;
	return lm_control_send(&c->control, LM_MSG_MISSING, &m, sizeof(m), lm_ctx_peer_deadline(c), err);
}

int lm_postcopy_vm_error(struct lm_postcopy_dest *p, struct lm_error *err)
{
	struct pollfd fd = { .fd = p->both.c->vm->pidfd, .events = POLLIN };

	if (poll(&fd, 1, 0) > 0)
		return lm_err(err, -ESRCH, LM_SCOPE_VM, "the guest's QEMU has exited while pages were missing");
	if (!atomic_load(&p->puller.vm_lost))
		return 0;
	*err = p->puller.vm_error;
	return err->code;
}
