/* SPDX-License-Identifier: Apache-2.0 */
/* A private directory for what lives as long as the machine runs. */
#ifndef CLI_RUNTIME_H
#define CLI_RUNTIME_H

#include <stddef.h>

/*
 * Make a new directory that only this user can enter, under $XDG_RUNTIME_DIR,
 * /run/migrate-rdma (root) or /tmp.  Its path goes to buf.  0 or a negative errno.
 */
int cli_runtime_dir_make(char *buf, size_t size);

#endif
