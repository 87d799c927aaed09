/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/sysmacros.h>
#include "engine/base/cleanup.h"
#include "maps.h"

#define MAPS_DELETED " (deleted)"

static bool perms_parse(const char *p, struct lm_map *m)
{
	if (strspn(p, "rwxsp-") != 4 || p[4])
		return false;
	m->read = p[0] == 'r';
	m->write = p[1] == 'w';
	m->exec = p[2] == 'x';
	m->shared = p[3] == 's';
	return true;
}

bool lm_map_parse(char *line, struct lm_map *ret)
{
	unsigned major, minor;
	char perms[8];
	int name = 0;

	memset(ret, 0, sizeof(*ret));
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %x:%x %" SCNu64 "%n", &ret->start, &ret->end,
		   perms, &ret->offset, &major, &minor, &ret->ino, &name) != 7)
		return false;
	if (!perms_parse(perms, ret) || ret->end <= ret->start)
		return false;
	ret->dev = makedev(major, minor);
	line += name;
	ret->name = line + strspn(line, " ");
	return true;
}

static int maps_grow(struct lm_maps *m)
{
	struct lm_map *p;

	if (m->n & (m->n - 1)) /* room for the next power of two */
		return 0;
	p = reallocarray(m->maps, m->n ? m->n * 2 : 1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	m->maps = p;
	return 0;
}

int lm_maps_parse(char *text, struct lm_maps *ret)
{
	struct lm_maps m = { .text = text };
	char *line, *rest = text;
	int r = 0;

	while (!r && (line = strsep(&rest, "\n"))) {
		if (!*line)
			continue;
		r = maps_grow(&m);
		if (!r && !lm_map_parse(line, &m.maps[m.n]))
			r = -EPROTO;
		if (!r)
			m.n++;
	}
	if (r)
		lm_maps_fini(&m);
	else
		*ret = m;
	return r;
}

void lm_maps_fini(struct lm_maps *m)
{
	free(m->maps);
	free(m->text);
	memset(m, 0, sizeof(*m));
}

/* The whole file as a string; proc files have no size to ask for. */
static int file_read(const char *path, char **ret)
{
	LM_AUTO_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t len = 0, cap = 0;
	char *text = NULL;
	ssize_t n = -1;

	if (fd < 0)
		return -errno;
	do {
		char *p = text;

		if (cap - len < 2) {
			cap = cap ? cap * 2 : 65536;
			p = realloc(text, cap);
		}
		if (!p) {
			free(text);
			return -ENOMEM;
		}
		text = p;
		n = read(fd, text + len, cap - len - 1);
		len += n > 0 ? (size_t)n : 0;
	} while (n > 0 || (n < 0 && errno == EINTR));
	text[len] = 0;
	if (n < 0) {
		n = -errno;
		free(text);
		return (int)n;
	}
	*ret = text;
	return 0;
}

int lm_maps_read(pid_t pid, struct lm_maps *ret, struct lm_error *err)
{
	char path[64], *text = NULL;
	int r;

	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	r = file_read(path, &text);
	if (!r)
		r = lm_maps_parse(text, ret);
	if (r == -ENOENT || r == -ESRCH)
		return lm_err(err, -ESRCH, LM_SCOPE_VM, "there is no process %d", (int)pid);
	if (r)
		return lm_err_errno(err, r, LM_SCOPE_SESSION,
				    "cannot read %s (run as the owner of the process or as root)", path);
	return 0;
}

static bool map_continues(const struct lm_map *m, const struct lm_maprun *run)
{
	return m->start == run->start + run->size && m->offset == run->offset + run->size;
}

static bool run_overlaps(const struct lm_maprun *run, uint64_t offset, uint64_t size)
{
	return run->size && run->offset < offset + size && offset < run->offset + run->size;
}

unsigned lm_maps_find(const struct lm_maps *m, uint64_t dev, uint64_t ino, uint64_t offset, uint64_t size,
		      struct lm_maprun *ret)
{
	struct lm_maprun run = { 0 };
	unsigned found = 0;

	/* one more turn than there are maps: the last stretch ends there */
	for (size_t i = 0; i <= m->n; i++) {
		const struct lm_map *map = i < m->n ? &m->maps[i] : NULL;
		bool ours = map && map->shared && map->write && map->ino == ino && map->dev == dev;

		if (ours && run.size && map_continues(map, &run)) {
			run.size += map->end - map->start;
			continue;
		}
		if (run_overlaps(&run, offset, size)) {
			found++;
			*ret = run;
		}
		run = (struct lm_maprun){ 0 };
		if (ours)
			run = (struct lm_maprun){ map->start, map->end - map->start, map->offset };
	}
	return found;
}

bool lm_map_name_is(const struct lm_map *m, const char *path)
{
	size_t len = strlen(path);

	return !strncmp(m->name, path, len) && (!m->name[len] || !strcmp(m->name + len, MAPS_DELETED));
}
