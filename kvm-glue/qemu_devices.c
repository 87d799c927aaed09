/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "qemu_priv.h"

/* QOM shows a child's type as "child<TYPE>". */
static bool child_type(const char *type, char *ret, size_t size)
{
	size_t len = strlen(type);

	if (strncmp(type, "child<", 6) || len < 8 || type[len - 1] != '>')
		return false;
	snprintf(ret, size, "%.*s", (int)(len - 7), type + 6);
	return true;
}

static int folder_each(struct qemu *q, const char *path, int (*fn)(void *opaque, const char *type), void *opaque,
		       struct lm_error *err)
{
	LM_AUTO_JS struct json_object *list = NULL;
	char type[96];
	int r = qemu_ask(q, "qom-list", lm_js_strings("path", path, NULL), &list, err);

	if (r == -ENODEV || r == -EREMOTEIO) /* a machine without such a folder */
		return 0;
	for (size_t i = 0; !r && i < lm_js_len(list); i++)
		if (child_type(lm_js_text(lm_js_at(list, i), "type"), type, sizeof(type)))
			r = fn(opaque, type);
	return r;
}

int qemu_devices_each(struct qemu *q, int (*fn)(void *opaque, const char *type), void *opaque,
		      struct lm_error *err)
{
	int r = folder_each(q, "/machine/peripheral", fn, opaque, err);

	return r ? r : folder_each(q, "/machine/peripheral-anon", fn, opaque, err);
}

struct discard_search {
	char *what;
	size_t size;
};

static int device_may_discard(void *opaque, const char *type)
{
	struct discard_search *s = opaque;

	if (strncmp(type, "virtio-balloon", strlen("virtio-balloon")) &&
	    strncmp(type, "virtio-mem", strlen("virtio-mem")))
		return 0;
	snprintf(s->what, s->size, "%s", type);
	return 1;
}

int qemu_may_discard(struct qemu *q, char *ret_what, size_t size, struct lm_error *err)
{
	struct discard_search s = { ret_what, size };
	int r = qemu_ask(q, "query-balloon", NULL, NULL, err);

	if (!r) {
		snprintf(ret_what, size, "balloon");
		return 1;
	}
	/* no balloon: DeviceNotActive; anything but a refusal is an error */
	if (r != -EREMOTEIO && r != -ENODEV && r != -ENOSYS)
		return r;
	return qemu_devices_each(q, device_may_discard, &s, err);
}

static bool has_prefix(const char *const *prefixes, const char *s)
{
	for (; *prefixes; prefixes++)
		if (!strncmp(s, *prefixes, strlen(*prefixes)))
			return true;
	return false;
}

bool qemu_has_open(const struct qemu *q, const char *const *prefixes, char *ret, size_t size)
{
	int fd = qemu_proc_open(q, "fd", O_RDONLY | O_DIRECTORY);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
	struct dirent *e;
	bool found = false;
	char path[256];

	if (!d) {
		lm_close_fd(&fd);
		return false;
	}
	while (!found && (e = readdir(d))) {
		ssize_t n = readlinkat(dirfd(d), e->d_name, path, sizeof(path) - 1);

		if (n <= 0)
			continue;
		path[n] = 0;
		found = has_prefix(prefixes, path);
	}
	closedir(d);
	if (found)
		snprintf(ret, size, "%s", path);
	return found;
}
