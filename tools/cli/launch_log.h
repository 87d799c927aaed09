/* SPDX-License-Identifier: Apache-2.0 */
/* Shows what QEMU appends to its log, line by line, as long as we run. */
#ifndef CLI_LAUNCH_LOG_H
#define CLI_LAUNCH_LOG_H

#include "output.h"

struct cli_launch_log;

int cli_launch_log_start(const char *path, struct cli_output *out, struct cli_launch_log **ret);
/* Shows what is there still.  Takes NULL. */
void cli_launch_log_stop(struct cli_launch_log *log);

#endif
