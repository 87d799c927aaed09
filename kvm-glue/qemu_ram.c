/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the guest's RAM is: QMP tells the memory backends and their paths, the
 * kernel tells where QEMU has those files mapped.
 *
 * A path means what it means to QEMU, in its mount namespace and before it went
 * into a chroot, and the file may be unlinked.  So the file is found by its
 * identity in /proc/PID/maps, and opened through /proc/PID/map_files.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include "engine/base/cleanup.h"
#include "maps.h"
#include "qemu_priv.h"

void qemu_memdevs_fini(struct qemu_memdevs *m)
{
	free(m->devs);
	memset(m, 0, sizeof(*m));
}

/* A property that backends of some types or versions lack: no error, *ret stays NULL. */
static int memdev_property(struct qemu *q, const char *id, const char *name, struct json_object **ret,
			   struct lm_error *err)
{
	char path[LM_REGION_NAME_MAX + 16];
	int r;

	snprintf(path, sizeof(path), "/objects/%s", id);
	r = qemu_qom_get(q, path, name, ret, err);
	return r == -EREMOTEIO || r == -ENODEV ? 0 : r;
}

static int memdev_text(struct qemu *q, const char *id, const char *name, char *ret, size_t size,
		       struct lm_error *err)
{
	LM_AUTO_JS struct json_object *v = NULL;
	int r = memdev_property(q, id, name, &v, err);

	if (r)
		return r;
	if (v && (size_t)json_object_get_string_len(v) >= size)
		return lm_err(err, -ENAMETOOLONG, LM_SCOPE_SESSION, "%s of memory backend %s is too long", name, id);
	if (v && json_object_is_type(v, json_type_string))
		strcpy(ret, json_object_get_string(v));
	return 0;
}

static int memdev_read(struct qemu *q, struct json_object *o, struct qemu_memdev *d, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *offset = NULL;
	const char *id = lm_js_text(o, "id");
	int64_t size = lm_js_int(o, "size", 0);
	int r;

	if (!id[0] || strlen(id) >= sizeof(d->id))
		return lm_err(err, -EOPNOTSUPP, LM_SCOPE_SESSION,
			      "a memory backend has no id or one of more than %zu characters", sizeof(d->id) - 1);
	if (size <= 0 || (uint64_t)size > LM_REGION_SIZE_MAX)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "memory backend %s has an impossible size", id);
	strcpy(d->id, id);
	d->size = (uint64_t)size;
	d->share = lm_js_true(o, "share");
	r = memdev_text(q, id, "type", d->type, sizeof(d->type), err);
	if (!r)
		r = memdev_text(q, id, "mem-path", d->path, sizeof(d->path), err);
	if (!r && d->path[0]) /* since QEMU 8.1 */
		r = memdev_property(q, id, "offset", &offset, err);
	if (offset)
		d->offset = json_object_get_uint64(offset);
	return r;
}

static int memdev_compare(const void *a, const void *b)
{
	return strcmp(((const struct qemu_memdev *)a)->id, ((const struct qemu_memdev *)b)->id);
}

int qemu_memdevs_read(struct qemu *q, struct qemu_memdevs *ret, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *list = NULL;
	struct qemu_memdevs m = { 0 };
	int r = qemu_ask(q, "query-memdev", NULL, &list, err);

	if (r)
		return r;
	if (lm_js_len(list) > LM_REGIONS_MAX)
		return lm_err(err, -E2BIG, LM_SCOPE_SESSION, "more than %d memory backends", LM_REGIONS_MAX);
	m.devs = calloc(lm_js_len(list) + 1, sizeof(*m.devs));
	if (!m.devs)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	for (; !r && m.n < lm_js_len(list); m.n++)
		r = memdev_read(q, lm_js_at(list, m.n), &m.devs[m.n], err);
	if (r) {
		qemu_memdevs_fini(&m);
		return r;
	}
	/* QEMU's order is that of a hash table: it differs between two QEMUs */
	qsort(m.devs, m.n, sizeof(*m.devs), memdev_compare);
	*ret = m;
	return 0;
}

/* mem-path is a folder: QEMU makes FOLDER/qemu_back_mem.ID.XXXXXX in it and unlinks that. */
static bool map_is_made_in(const struct lm_map *m, const struct qemu_memdev *d)
{
	size_t len = strlen(d->path);
	char name[2][LM_REGION_NAME_MAX + 48];

	while (len > 1 && d->path[len - 1] == '/')
		len--;
	if (strncmp(m->name, d->path, len) || m->name[len] != '/')
		return false;
	snprintf(name[0], sizeof(name[0]), "/qemu_back_mem.%s.", d->id);
	snprintf(name[1], sizeof(name[1]), "/qemu_back_mem._objects_%s.", d->id);
	return !strncmp(m->name + len, name[0], strlen(name[0])) ||
	       !strncmp(m->name + len, name[1], strlen(name[1]));
}

/* By the file that the path leads to as QEMU sees it now. */
static bool map_is_file(const struct lm_map *m, const struct stat *st)
{
	return st->st_ino == m->ino && st->st_dev == m->dev;
}

static bool path_stat(const struct qemu *q, const char *path, struct stat *st)
{
	char full[640];

	snprintf(full, sizeof(full), "/proc/%d/root/%s", (int)q->pid, path);
	return !stat(full, st) && S_ISREG(st->st_mode);
}

/* A mapping of the backend's file; by identity first, by name where that leads nowhere. */
static const struct lm_map *memdev_find(const struct qemu *q, const struct qemu_memdev *d, const struct lm_maps *m)
{
	struct stat st;
	bool exists = path_stat(q, d->path, &st);

	for (int by_name = exists ? 0 : 1; by_name < 2; by_name++)
		for (size_t i = 0; i < m->n; i++) {
			const struct lm_map *map = &m->maps[i];

			if (!map->ino || !map->shared || !map->write)
				continue;
			if (by_name ? lm_map_name_is(map, d->path) || map_is_made_in(map, d) : map_is_file(map, &st))
				return map;
		}
	return NULL;
}

/* Needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; the path is the way for others. */
static int map_open(const struct qemu *q, const struct qemu_memdev *d, const struct lm_map *map, int flags)
{
	char name[700];
	int fd;

	snprintf(name, sizeof(name), "map_files/%llx-%llx", (unsigned long long)map->start,
		 (unsigned long long)map->end);
	fd = qemu_proc_open(q, name, flags);
	if (fd >= 0 || (errno != EPERM && errno != EACCES))
		return fd;
	snprintf(name, sizeof(name), "root/%s", d->path);
	return qemu_proc_open(q, name, flags);
}

/* Page size of the file system that the tracker and the lanes can work with, 0 for others. */
static uint64_t file_page_size(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs))
		return 0;
	if (fs.f_type == TMPFS_MAGIC)
		return LM_PAGE_SIZE;
	return fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : 0;
}

static int region_open(const struct qemu *q, const struct qemu_memdev *d, const struct lm_map *map,
		       struct lm_region *r, struct lm_error *err)
{
	struct stat st;

	r->fd = map_open(q, d, map, q->side == LM_DEST ? O_RDWR : O_RDONLY);
	if (r->fd < 0 || fstat(r->fd, &st))
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
				    "cannot open the file of memory backend %s (%s): run migrate-rdma as root", d->id,
				    d->path);
	r->dev = st.st_dev;
	r->ino = st.st_ino;
	if (r->dev != map->dev || r->ino != map->ino)
		return lm_err(err, -ESTALE, LM_SCOPE_SESSION,
			      "%s is not the file any more that memory backend %s has mapped: run migrate-rdma "
			      "as root",
			      d->path, d->id);
	r->page_size = file_page_size(r->fd);
	if (!r->page_size)
		return lm_err(err, -EOPNOTSUPP, LM_SCOPE_SESSION,
			      "memory backend %s: %s is neither on tmpfs nor on hugetlbfs: give it "
			      "mem-path=/dev/shm/NAME",
			      d->id, d->path);
	return 0;
}

static int region_place(const struct qemu_memdev *d, const struct lm_maps *maps, struct lm_region *r,
			struct lm_error *err)
{
	struct lm_maprun run = { 0 };
	unsigned n;

	r->size = (d->size + r->page_size - 1) / r->page_size * r->page_size;
	r->file_offset = d->offset;
	n = lm_maps_find(maps, r->dev, r->ino, r->file_offset, r->size, &run);
	if (n > 1)
		return lm_err(err, -EOPNOTSUPP, LM_SCOPE_SESSION,
			      "memory backend %s: QEMU has its file mapped writable %u times: two backends "
			      "share %s, or part of it is read-only", d->id, n, d->path);
	if (n == 0 || run.offset > r->file_offset || run.offset + run.size < r->file_offset + r->size)
		return lm_err(err, -EOPNOTSUPP, LM_SCOPE_SESSION,
			      "memory backend %s: QEMU does not have all of %s mapped shared and writable", d->id,
			      d->path);
	r->vm_addr = run.start + (r->file_offset - run.offset);
	return 0;
}

static int region_read(const struct qemu *q, const struct qemu_memdev *d, const struct lm_maps *maps,
		       struct lm_region *r, struct lm_error *err)
{
	const struct lm_map *map = d->path[0] && d->share ? memdev_find(q, d, maps) : NULL;
	int ret;

	r->fd = -1;
	strcpy(r->name, d->id);
	if (!map && !(d->path[0] && d->share))
		return lm_err(err, -EOPNOTSUPP, LM_SCOPE_SESSION, "memory backend %s is not a shared file", d->id);
	if (!map) {
		char comm[32];

		lm_proc_comm(q->pid, comm, sizeof(comm));
		return lm_err(err, -ESRCH, LM_SCOPE_SESSION,
			      "process %d (%s) does not have %s mapped, so it is not the QEMU behind this QMP "
			      "socket: give the process id of QEMU with --pid", (int)q->pid, comm, d->path);
	}
	ret = region_open(q, d, map, r, err);
	return ret ? ret : region_place(d, maps, r, err);
}

static int ram_read(struct qemu *q, const struct qemu_memdevs *devs, const struct lm_maps *maps,
		    struct lm_ram *ram, struct lm_error *err)
{
	char what[64];
	int r = 0;

	ram->regions = calloc(devs->n + 1, sizeof(*ram->regions));
	if (!ram->regions)
		return lm_err(err, -ENOMEM, LM_SCOPE_SESSION, "out of memory");
	for (unsigned i = 0; !r && i < devs->n; i++) {
		ram->nregions++;
		r = region_read(q, &devs->devs[i], maps, &ram->regions[i], err);
	}
	if (!r)
		r = qemu_may_discard(q, what, sizeof(what), err);
	ram->may_discard = r > 0;
	return r < 0 ? r : 0;
}

int qemu_regions(struct lm_vm *vm, struct lm_ram *ret_ram, struct lm_error *err)
{
	struct qemu *q = qemu_of(vm);
	struct qemu_memdevs devs = { 0 };
	struct lm_maps maps = { 0 };
	struct lm_ram ram = { 0 };
	int r = qemu_memdevs_read(q, &devs, err);

	if (!r)
		r = lm_maps_read(q->pid, &maps, err);
	if (!r)
		r = ram_read(q, &devs, &maps, &ram, err);
	qemu_memdevs_fini(&devs);
	lm_maps_fini(&maps);
	if (r)
		lm_ram_fini(&ram);
	else
		*ret_ram = ram;
	return r;
}

static const struct lm_region *region_named(const struct lm_ram *ram, const char *id)
{
	for (unsigned i = 0; i < ram->nregions; i++)
		if (!strcmp(ram->regions[i].name, id))
			return &ram->regions[i];
	return NULL;
}

static bool region_is_mapped(const struct lm_region *r, const struct lm_maps *maps)
{
	struct lm_maprun run = { 0 };

	return lm_maps_find(maps, r->dev, r->ino, r->file_offset, r->size, &run) == 1 && run.offset <= r->file_offset &&
	       run.offset + run.size >= r->file_offset + r->size && r->vm_addr == run.start + (r->file_offset - run.offset);
}

static bool memdev_is(struct json_object *o, const struct lm_region *r)
{
	uint64_t size = (uint64_t)lm_js_int(o, "size", 0);

	return lm_js_true(o, "share") && (size + r->page_size - 1) / r->page_size * r->page_size == r->size;
}

/* The ids are those of the regions, each once; a file that was changed under an id shows in the mappings. */
int qemu_ram_is(struct lm_vm *vm, const struct lm_ram *ram, bool *ret, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *list = NULL;
	struct qemu *q = qemu_of(vm);
	struct lm_maps maps = { 0 };
	bool same;
	int r = qemu_ask(q, "query-memdev", NULL, &list, err);

	if (!r)
		r = lm_maps_read(q->pid, &maps, err);
	if (r)
		return r;
	same = lm_js_len(list) == ram->nregions;
	for (size_t i = 0; same && i < ram->nregions; i++) {
		const struct lm_region *named = region_named(ram, lm_js_text(lm_js_at(list, i), "id"));

		same = named && memdev_is(lm_js_at(list, i), named) && region_is_mapped(named, &maps);
	}
	lm_maps_fini(&maps);
	*ret = same;
	return 0;
}
