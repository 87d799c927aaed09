/* SPDX-License-Identifier: Apache-2.0 */
/* Private directories for what lives as long as the machine runs. */
#ifndef CLI_RUNTIME_H
#define CLI_RUNTIME_H

#include <stdbool.h>
#include <stddef.h>

#define CLI_RUNTIME_PLACES 3

/*
 * One of the directories in which files of this user may lie, by the order in which
 * they are to be tried: $XDG_RUNTIME_DIR/migrate-rdma, /run/migrate-rdma,
 * /run/user/UID/migrate-rdma.  Returns a descriptor, owned by the caller, or a
 * negative errno: it is not there (and could not be made), or others could write to
 * it (-EPERM).  Its path goes to buf.
 */
int cli_runtime_dir_open(unsigned index, bool make, char *buf, size_t size);

/*
 * Make a new directory that only this user can enter, under $XDG_RUNTIME_DIR,
 * /run/migrate-rdma (root) or /tmp.  Its path goes to buf.  0 or a negative errno.
 */
int cli_runtime_dir_make(char *buf, size_t size);

#endif
