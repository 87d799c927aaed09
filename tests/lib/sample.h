/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrices are too large to run whole each time: tools/check gives a seed, and a part of the rows runs.
 *
 * LM_SAMPLE=PART/PARTS in the environment chooses rows: row number i of a matrix runs when i % PARTS is PART, so
 * PARTS runs with consecutive parts run every row.  Rows that ever found a fault run always.  Without LM_SAMPLE all
 * rows run.
 */
#ifndef SAMPLE_H
#define SAMPLE_H

#include <stdbool.h>
#include <stddef.h>

/* Whether row number `row` (of this name) runs.  always: names, the last one NULL; or NULL.  Ends the process when
 * LM_SAMPLE is malformed. */
bool sample_has(size_t row, const char *name, const char *const *always);

#endif
