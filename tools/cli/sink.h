/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Output that can never delay a migration.
 *
 * Events come from the thread that moves the guest, perhaps while the guest is
 * stopped, and the reader of our output may be a stopped terminal, a full pipe
 * or gone.  So text is only queued here; a thread writes it.  When the reader
 * does not keep up, first progress and then other text is dropped, and the
 * number of dropped pieces is known.  After a write error everything is dropped.
 */
#ifndef CLI_SINK_H
#define CLI_SINK_H

#include <stddef.h>

struct cli_sink;

enum cli_weight {
	CLI_MAY_DROP,  /* the next one says the same, but newer */
	CLI_NORMAL,
	CLI_MUST_KEEP, /* the result: kept whatever is queued */
};

/* The descriptor stays the caller's.  0 or a negative errno. */
int cli_sink_open(int fd, struct cli_sink **ret);
/* Any thread; returns at once.  All of the text or nothing of it is queued. */
void cli_sink_put(struct cli_sink *sink, enum cli_weight weight, const char *text, size_t len);
/* Wait until all is written, but no longer than that. */
void cli_sink_flush(struct cli_sink *sink, int timeout_ms);
/* Number of pieces dropped since the last call. */
unsigned cli_sink_take_dropped(struct cli_sink *sink);
/*
 * Flush, then free.  A writer that is still stuck is left behind with its memory.
 * Takes NULL.
 */
void cli_sink_close(struct cli_sink *sink, int timeout_ms);

#endif
