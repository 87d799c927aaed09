/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guest RAM of which a description is left, for an engine that takes a VM over.
 * QMP is not asked: QEMU's main loop may be waiting for a page.  That the process
 * is the right one is seen by what it has mapped: the same files, at the same
 * addresses.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include "engine/base/cleanup.h"
#include "maps.h"
#include "qemu.h"

/* The mapping of the region's first byte when all of it is where it was; NULL otherwise. */
static const struct lm_map *region_find(const struct lm_maps *m, const struct lm_region *r)
{
	struct lm_maprun run = { 0 };

	if (lm_maps_find(m, r->dev, r->ino, r->file_offset, r->size, &run) != 1)
		return NULL;
	if (run.offset > r->file_offset || run.size - (r->file_offset - run.offset) < r->size ||
	    run.start + (r->file_offset - run.offset) != r->vm_addr)
		return NULL;
	/* watching parts of it has cut it into several mappings of one file */
	for (size_t i = 0; i < m->n; i++)
		if (m->maps[i].start <= r->vm_addr && r->vm_addr < m->maps[i].end)
			return &m->maps[i];
	return NULL;
}

static bool is_same_file(const struct lm_region *r)
{
	struct statfs fs;
	struct stat st;

	return !fstat(r->fd, &st) && !fstatfs(r->fd, &fs) && st.st_dev == r->dev && st.st_ino == r->ino &&
	       (uint64_t)fs.f_bsize == r->page_size;
}

static int region_reopen(pid_t pid, const struct lm_maps *m, struct lm_region *r, bool writable,
			 struct lm_error *err)
{
	const struct lm_map *map = region_find(m, r);
	char path[96];

	if (!map)
		return lm_err(err, -ESTALE, LM_SCOPE_SESSION,
			      "process %d does not have memory backend %s mapped where it was: this is another "
			      "process, or another guest", (int)pid, r->name);
	snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", (int)pid, (unsigned long long)map->start,
		 (unsigned long long)map->end);
	r->fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	if (r->fd < 0)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION,
				    "cannot open the file of memory backend %s in process %d: run migrate-rdma as "
				    "root", r->name, (int)pid);
	if (!is_same_file(r))
		return lm_err(err, -ESTALE, LM_SCOPE_SESSION,
			      "process %d has another file mapped where memory backend %s was", (int)pid, r->name);
	return 0;
}

int lm_qemu_ram_reopen(pid_t pid, struct lm_ram *ram, bool writable, struct lm_error *err)
{
	struct lm_maps maps = { 0 };
	int r = lm_maps_read(pid, &maps, err);

	if (!r && !maps.n)
		r = lm_err(err, -ESRCH, LM_SCOPE_VM, "process %d has ended", (int)pid);
	for (unsigned i = 0; !r && i < ram->nregions; i++)
		r = region_reopen(pid, &maps, &ram->regions[i], writable, err);
	for (unsigned i = 0; r && i < ram->nregions; i++)
		lm_close_fd(&ram->regions[i].fd);
	lm_maps_fini(&maps);
	return r;
}
