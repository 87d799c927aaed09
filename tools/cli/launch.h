/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's QEMU, started by `receive -- QEMU ARGUMENT...`.
 *
 * It runs in a session of its own, with standard input from /dev/null and its
 * output in a file that is shown while we run, so that it outlives us, our
 * terminal and our pipes.  It gets `-incoming defer`, `-S` and a QMP socket.
 */
#ifndef CLI_LAUNCH_H
#define CLI_LAUNCH_H

#include "output.h"
#include "signals.h"

#define CLI_PATH_MAX 108 /* of a socket: sizeof(sockaddr_un.sun_path) */

struct cli_launch;

/*
 * The words of the command with ours added, NULL-ended; free() it, not its words
 * (they are in the same block or the caller's).  -EINVAL: it has words that do not
 * go together with ours.
 */
int cli_launch_words(char *const *words, const char *qmp, char ***ret, struct lm_error *err);

/*
 * Start it and wait until its QMP socket answers.  qmp NULL: the socket is made in
 * a new private directory.  Fails when it ends before (its output has been
 * shown), or when signals asks to stop (-ECANCELED); nothing is left then.
 */
int cli_launch_start(char *const *words, const char *qmp, struct cli_signals *signals,
		     struct cli_output *out, struct cli_launch **ret, struct lm_error *err);
int32_t cli_launch_pid(const struct cli_launch *launch);
const char *cli_launch_qmp(const struct cli_launch *launch);
/* Let go; it goes on. */
void cli_launch_leave(struct cli_launch *launch);
/* End it and remove what was made for it. */
void cli_launch_end(struct cli_launch *launch);

#endif
