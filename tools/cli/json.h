/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The output of --json: one object per line.  The schema is documented in
 * migrate-rdma(1); "v" is its version, raised when a key changes its meaning
 * or goes away.  New keys and new events do not raise it.
 */
#ifndef CLI_JSON_H
#define CLI_JSON_H

#include <stdio.h>
#include "migrate_rdma.h"

#define CLI_JSON_VERSION 1

/* A line that ends in a newline, owned by the caller (free()); NULL: out of memory. */
char *cli_json_event(const struct lm_event *event);
/* receive: the QEMU that it started. */
char *cli_json_qemu(int32_t pid, const char *qmp, const char *log);
/* Events that were not written because the reader was too slow. */
char *cli_json_dropped(unsigned count);

/* Answers of the subcommands that move no guest; printed at once. */
void cli_json_check(const struct lm_check *check, const char *about, FILE *to);
void cli_json_checked(int failed, const struct lm_error *err, FILE *to);
void cli_json_lock(const char *uri, const struct lm_lock_info *info, const struct lm_error *err, FILE *to);
void cli_json_transport(const char *name, FILE *to);

#endif
