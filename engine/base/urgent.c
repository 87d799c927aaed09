/* SPDX-License-Identifier: Apache-2.0 */
#include <sys/resource.h>
#include "urgent.h"

#define URGENT_NICE (-10)

int lm_urgent_begin(pid_t tid)
{
	int before = getpriority(PRIO_PROCESS, (id_t)tid);

	if (before > URGENT_NICE)
		setpriority(PRIO_PROCESS, (id_t)tid, URGENT_NICE);
	return before;
}

void lm_urgent_end(pid_t tid, int before)
{
	if (before > URGENT_NICE)
		setpriority(PRIO_PROCESS, (id_t)tid, before);
}
