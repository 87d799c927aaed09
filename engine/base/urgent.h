/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads for which the guest waits come before others of this host, where the user's rights
 * allow that: on a busy host every one of the dozen steps of a switchover would else wait its
 * turn behind other guests' vCPUs.  On Linux a thread has a nice value of its own, and its
 * new threads inherit it.
 */
#ifndef LM_URGENT_H
#define LM_URGENT_H

#include <sys/types.h>

/*
 * tid: a thread of this process, 0 for the calling one.  Only ever towards urgent, so that one that
 * was started with a lower nice value keeps it.  Returns the nice value it had, for the end.
 */
int lm_urgent_begin(pid_t tid);
void lm_urgent_end(pid_t tid, int before);

#endif
