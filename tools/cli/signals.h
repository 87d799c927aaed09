/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals while a guest is being moved.  They are blocked in every thread; one thread takes them
 * and asks the session to stop, or (SIGUSR1) to switch over to post-copy.  So neither a Ctrl-C, a
 * second Ctrl-C, a closed terminal nor a Ctrl-Z ends or stops this process in the middle.
 */
#ifndef CLI_SIGNALS_H
#define CLI_SIGNALS_H

#include <signal.h>
#include <stdbool.h>
#include "output.h"

struct cli_signals;

/* Call before any other thread is made.  One at a time. */
int cli_signals_start(struct cli_signals **ret);
/* Where to say what a signal did. */
void cli_signals_set_output(struct cli_signals *signals, struct cli_output *out);
/* The session to ask; asks it at once when a signal came before.  NULL: none any more. */
void cli_signals_set_session(struct cli_signals *signals, struct lm_session *session);
/* Readable when a signal asked to stop. */
int cli_signals_fd(const struct cli_signals *signals);
bool cli_signals_asked(struct cli_signals *signals);
/* The mask before cli_signals_start(), for a program that is started. */
const sigset_t *cli_signals_old_mask(const struct cli_signals *signals);
/* Takes NULL. */
void cli_signals_stop(struct cli_signals *signals);

#endif
