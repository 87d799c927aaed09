/* SPDX-License-Identifier: Apache-2.0 */
/* The mappings of another process, from /proc/PID/maps. */
#ifndef LM_MAPS_H
#define LM_MAPS_H

#include <sys/types.h>
#include "engine/base/error.h"

struct lm_map {
	uint64_t start, end; /* addresses, [start, end) */
	uint64_t offset;     /* of start in the file */
	uint64_t dev, ino;   /* of the file; ino 0: no file */
	bool read, write, exec, shared;
	const char *name; /* as the kernel writes it, "" for none; inside lm_maps.text */
};

struct lm_maps {
	struct lm_map *maps;
	size_t n;
	char *text;
};

/* One line without its end, which is changed; false when it is not a line of a maps file. */
bool lm_map_parse(char *line, struct lm_map *ret);
/* Takes text over, also on error: -EPROTO when a line cannot be understood, -ENOMEM. */
int lm_maps_parse(char *text, struct lm_maps *ret);
/* -ESRCH when there is no such process; a process without memory has no maps. */
int lm_maps_read(pid_t pid, struct lm_maps *ret, struct lm_error *err);
void lm_maps_fini(struct lm_maps *m); /* takes a zeroed one */

/* A stretch of a file that is mapped in one piece, whatever the number of VMAs it is made of. */
struct lm_maprun {
	uint64_t start, size;
	uint64_t offset;
};

/*
 * Counts the shared, writable stretches of the file that overlap [offset, offset + size); the
 * last one is in *ret.
 */
unsigned lm_maps_find(const struct lm_maps *m, uint64_t dev, uint64_t ino, uint64_t offset, uint64_t size,
		      struct lm_maprun *ret);

/* Whether the name is path, unlinked or not. */
bool lm_map_name_is(const struct lm_map *m, const char *path);

#endif
