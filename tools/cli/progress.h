/* SPDX-License-Identifier: Apache-2.0 */
/* The progress of a round, or of post-copy, on one line. */
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
/*
 * The same for post-copy:
 *   post-copy [####---]  51%  12.0 MiB missing  340 faults  p50 90 us  p99 400 us  max 1.20 ms  waited 30.0 ms  0:12
 * The times are of the guest's threads that waited for a page; "waited" is their sum.
 */
size_t cli_progress_postcopy(char *buf, size_t size, unsigned width, const struct lm_postcopy_stats *p,
			     int64_t elapsed_ns);

#endif
