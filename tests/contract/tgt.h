/* SPDX-License-Identifier: Apache-2.0 */
/* A real iSCSI target (tgtd) of the test's own: two portals on loopback, LUNs on files. */
#ifndef TGT_H
#define TGT_H

#include <stdbool.h>
#include <stddef.h>

/* preload: a library for LD_PRELOAD, or NULL.  false: why says what is missing. */
bool tgt_start(const char *preload, char *why, size_t size);
/* Make a LUN; its URI for scsi-pr. */
void tgt_lun(char *uri, size_t size);
/* Kill it; all that it knew of reservations is gone.  Then start it on the same ports with the same LUNs. */
void tgt_kill(void);
bool tgt_again(void);
/* Stop and continue answering (SIGSTOP, SIGCONT). */
void tgt_pause(bool pause);
/* Take the sessions of one portal (0, 1) away and do not let it come back, or let it. */
void tgt_portal(unsigned portal, bool on);
/* Logins at the second portal are sent on to the first.  A restart ends that. */
bool tgt_redirect(void);
/* The file of the last LUN. */
const char *tgt_file(void);
void tgt_stop(void);

#endif
