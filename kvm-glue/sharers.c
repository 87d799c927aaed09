/* SPDX-License-Identifier: Apache-2.0 */
/* Processes besides QEMU that can write to guest RAM: their writes would not be seen. */
#include <dirent.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "maps.h"
#include "qemu_priv.h"

void lm_proc_comm(pid_t pid, char *ret, size_t size)
{
	char path[64];
	LM_AUTO_FILE FILE *f = NULL;

	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	f = fopen(path, "re");
	if (!f || !fgets(ret, (int)size, f))
		snprintf(ret, size, "?");
	ret[strcspn(ret, "\n")] = 0;
}

static bool map_is_ram(const struct lm_map *m, const struct lm_ram *ram)
{
	if (!m->shared || !m->write || !m->ino)
		return false;
	for (unsigned i = 0; i < ram->nregions; i++)
		if (ram->regions[i].ino == m->ino && ram->regions[i].dev == m->dev)
			return true;
	return false;
}

static bool process_shares(pid_t pid, const struct lm_ram *ram, struct lm_sharer *ret)
{
	struct lm_maps maps = { 0 };
	bool found = false;

	/* one that has ended meanwhile, or a kernel thread, shares nothing */
	if (lm_maps_read(pid, &maps, NULL))
		return false;
	for (size_t i = 0; i < maps.n && !found; i++) {
		found = map_is_ram(&maps.maps[i], ram);
		ret->dev = maps.maps[i].dev;
		ret->ino = maps.maps[i].ino;
	}
	lm_maps_fini(&maps);
	return found;
}

int lm_sharer_find(pid_t pid, const struct lm_ram *ram, struct lm_sharer *ret, struct lm_error *err)
{
	struct dirent *e;
	int found = 0;
	DIR *d = opendir("/proc");

	if (!d)
		return lm_err_errno(err, -errno, LM_SCOPE_SESSION, "cannot list the processes");
	while (!found && (e = readdir(d))) {
		ret->pid = (pid_t)strtol(e->d_name, NULL, 10);
		if (ret->pid > 0 && ret->pid != pid && ret->pid != getpid())
			found = process_shares(ret->pid, ram, ret);
	}
	closedir(d);
	if (found)
		lm_proc_comm(ret->pid, ret->comm, sizeof(ret->comm));
	return found;
}
