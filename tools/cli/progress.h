/* SPDX-License-Identifier: Apache-2.0 */
/* The progress of a round, on one line. */
#ifndef CLI_PROGRESS_H
#define CLI_PROGRESS_H

#include <stddef.h>
#include "migrate_rdma.h"

/*
 * At most width columns, plain ASCII, no control characters:
 *   round 0 [#########---------]  51%  1.21 GiB  3.40 GiB/s  0:12
 * A narrow terminal loses the bar first, then the words from the right.
 * Returns the length.
 */
size_t cli_progress_format(char *buf, size_t size, unsigned width, const struct lm_progress *p,
			   int64_t elapsed_ns);

#endif
