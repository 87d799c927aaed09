/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest must be like to be migrated safely: one function per criterion,
 * one table.  lm_qemu_attach() refuses a guest exactly when lm_check_guest()
 * shows a failure, because both walk this table.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include "engine/base/cleanup.h"
#include "engine/base/memlock.h"
#include "qemu_priv.h"

struct rule {
	const char *name;
	bool source, dest;
	/* Fills status, found and advice (preset: OK, ""); negative when QEMU could not be asked. */
	int (*fn)(struct qemu *q, struct lm_check *c, struct lm_error *err);
};

__attribute__((format(printf, 2, 3))) static void found(struct lm_check *c, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(c->found, sizeof(c->found), fmt, ap);
	va_end(ap);
}

__attribute__((format(printf, 3, 4))) static int advise(struct lm_check *c, enum lm_check_status status,
							const char *fmt, ...)
{
	va_list ap;

	c->status = status;
	va_start(ap, fmt);
	vsnprintf(c->advice, sizeof(c->advice), fmt, ap);
	va_end(ap);
	return 0;
}

static bool one_of(const char *s, const char *const *list)
{
	for (; *list; list++)
		if (!strcmp(s, *list))
			return true;
	return false;
}

static int rule_version(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	(void)err;
	found(c, "QEMU %s", q->base.info.version);
	if (q->major < 7 || (q->major == 7 && q->minor < 2))
		return advise(c, LM_CHECK_FAIL, "QEMU 7.2 or newer is needed");
	return 0;
}

static int rule_source_state(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	static const char *const fine[] = { "running", "paused", "prelaunch", "io-error", "watchdog", NULL };
	struct qemu_status st;
	int r = qemu_status_read(q->qmp, qemu_deadline(q), &st, err);

	if (r)
		return r;
	found(c, "guest is %s", st.run);
	if (one_of(st.run, fine))
		return 0;
	if (!strcmp(st.run, "inmigrate"))
		return advise(c, LM_CHECK_FAIL, "this QEMU waits for a guest: it can only be a destination");
	if (!strcmp(st.run, "postmigrate") || !strcmp(st.run, "finish-migrate"))
		return advise(c, LM_CHECK_FAIL,
			      "an earlier migration left it paused (%s): see `migrate-rdma resolve` whether "
			      "the guest runs elsewhere; QMP `cont` runs it here, and `stop` pauses it "
			      "again", st.migration);
	if (!strcmp(st.run, "suspended"))
		return advise(c, LM_CHECK_FAIL, "wake the guest first (QMP `system_wakeup`)");
	return advise(c, LM_CHECK_FAIL, "a guest in this state cannot run on: reset it (QMP `system_reset`, "
			"`cont`) first");
}

/*
 * The argument after an option of QEMU's command line ("" for an option at its
 * end), false when the option is not there.  QEMU takes -x and --x.
 */
static bool cmdline_option(const struct qemu *q, const char *option, char *ret, size_t size)
{
	char path[64];
	LM_AUTO_FILE FILE *f = NULL;
	LM_AUTO_FREE char *arg = NULL;
	size_t cap = 0;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)q->pid);
	f = fopen(path, "re");
	while (f && getdelim(&arg, &cap, 0, f) > 0) {
		if (strcmp(arg, option) && !(arg[0] == '-' && !strcmp(arg + 1, option)))
			continue;
		snprintf(ret, size, "%s", getdelim(&arg, &cap, 0, f) > 0 ? arg : "");
		return true;
	}
	return false;
}

static int rule_dest_state(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	struct qemu_status st;
	char uri[128];
	int r = qemu_status_read(q->qmp, qemu_deadline(q), &st, err);

	if (r)
		return r;
	found(c, "guest is %s, incoming migration: %s", st.run, st.migration);
	if (strcmp(st.run, "inmigrate"))
		return advise(c, LM_CHECK_FAIL, "start the destination's QEMU with -incoming defer -S");
	if (!strcmp(st.migration, "failed"))
		return advise(c, LM_CHECK_FAIL, "a migration into this QEMU has failed: end it and start a new one");
	if (!cmdline_option(q, "-incoming", uri, sizeof(uri)))
		strcpy(uri, "defer");
	if (strcmp(st.migration, "none") || strcmp(uri, "defer"))
		return advise(c, LM_CHECK_FAIL, "it waits for its own migration (-incoming %s): use -incoming "
				"defer instead",
			      uri);
	return 0;
}

static int rule_source_migration(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	struct qemu_status st;
	int r = qemu_status_read(q->qmp, qemu_deadline(q), &st, err);

	if (r)
		return r;
	found(c, "last migration: %s", st.migration);
	if (qemu_migration_active(st.migration))
		return advise(c, LM_CHECK_FAIL, "another migration runs: wait for its end or give QMP "
				"`migrate_cancel`");
	return 0;
}

static int rule_blockers(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	LM_AUTO_JS struct json_object *info = NULL;
	struct json_object *reasons;
	int r = qemu_ask(q, "query-migrate", NULL, &info, err);

	if (r)
		return r;
	reasons = lm_js_get(info, "blocked-reasons");
	if (!lm_js_len(reasons)) {
		found(c, "none");
		return 0;
	}
	found(c, "%s", json_object_get_string(lm_js_at(reasons, 0)));
	return advise(c, LM_CHECK_FAIL, "a device of this guest forbids migration: unplug it or start the "
			"guest without it");
}

static int rule_capabilities(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	static const char *const need[] = { "x-ignore-shared", "pause-before-switchover", "events", NULL };
	LM_AUTO_JS struct json_object *list = NULL;
	unsigned n = 0;
	int r = qemu_ask(q, "query-migrate-capabilities", NULL, &list, err);

	if (r)
		return r;
	for (size_t i = 0; i < lm_js_len(list); i++)
		n += one_of(lm_js_text(lm_js_at(list, i), "capability"), need);
	found(c, "%u of the 3 that are needed", n);
	return n == 3 ? 0 : advise(c, LM_CHECK_FAIL, "this QEMU lacks x-ignore-shared, pause-before-switchover "
			"or events");
}

static int memdev_judge(const struct qemu_memdev *d, struct lm_check *c)
{
	if (!strcmp(d->type, "memory-backend-memfd")) {
		found(c, "memory backend %s is a memfd", d->id);
		return advise(c, LM_CHECK_FAIL,
			      "since QEMU 8.1 x-ignore-shared skips named files only: use "
			      "memory-backend-file,id=%s,size=%lluM,mem-path=/dev/shm/NAME,share=on", d->id,
			      (unsigned long long)d->size >> 20);
	}
	if (strcmp(d->type, "memory-backend-file")) {
		found(c, "memory backend %s is of type %s", d->id, d->type);
		return advise(c, LM_CHECK_FAIL,
			      "start the guest with -object "
			      "memory-backend-file,id=ram0,size=%lluM,mem-path=/dev/shm/NAME,share=on -machine "
			      "memory-backend=ram0 (-m alone makes memory that no other process can map)",
			      (unsigned long long)d->size >> 20);
	}
	if (!d->share) {
		found(c, "memory backend %s (%s) is not shared", d->id, d->path);
		return advise(c, LM_CHECK_FAIL, "add share=on to -object memory-backend-file,id=%s (-mem-path "
			      "must become such an -object)", d->id);
	}
	return 0;
}

static int rule_memory(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	struct qemu_memdevs m = { 0 };
	uint64_t size = 0;
	int r = qemu_memdevs_read(q, &m, err);

	for (unsigned i = 0; !r && i < m.n && c->status == LM_CHECK_OK; i++) {
		r = memdev_judge(&m.devs[i], c);
		size += m.devs[i].size;
	}
	if (!r && !m.n) {
		found(c, "no memory backend");
		r = advise(c, LM_CHECK_FAIL, "start the guest with -object "
			   "memory-backend-file,id=ram0,size=SIZE,mem-path=/dev/shm/NAME,share=on -machine "
			   "memory-backend=ram0");
	}
	if (!r && c->status == LM_CHECK_OK)
		found(c, "%u shared file(s), %llu MiB", m.n, (unsigned long long)size >> 20);
	qemu_memdevs_fini(&m);
	return r;
}

/* An error of this call is a finding unless QEMU itself is gone. */
static int rule_mappings(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	struct lm_ram ram = { 0 };
	struct lm_error e = { 0 };
	int r = qemu_regions(&q->base, &ram, &e);

	if (r && (e.scope == LM_SCOPE_VM || r == -ECANCELED)) {
		if (err)
			*err = e;
		return r;
	}
	if (r) {
		found(c, "RAM of process %d cannot be reached", (int)q->pid);
		return advise(c, LM_CHECK_FAIL, "%s", e.msg);
	}
	found(c, "%u region(s) in process %d%s", ram.nregions, (int)q->pid,
	      ram.nregions && ram.regions[0].page_size > LM_PAGE_SIZE ? ", huge pages" : "");
	lm_ram_fini(&ram);
	return 0;
}

static int rule_sharers(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	struct lm_ram ram = { 0 };
	struct lm_sharer s;
	int r;

	/* what is wrong with the mappings is said by rule_mappings */
	if (qemu_regions(&q->base, &ram, NULL)) {
		found(c, "not looked for");
		return 0;
	}
	r = lm_sharer_find(q->pid, &ram, &s, err);
	lm_ram_fini(&ram);
	if (r < 0)
		return r;
	if (!r) {
		found(c, "none");
		return 0;
	}
	found(c, "process %d (%s) has guest RAM mapped writable", (int)s.pid, s.comm);
	return advise(c, LM_CHECK_FAIL,
		      "its writes would be missed: vhost-user devices (virtiofsd, SPDK, DPDK, ...) are not "
		      "supported; start the guest without it");
}

static int device_unsafe(void *opaque, const char *type)
{
	static const char *const prefixes[] = { "vfio-", "vhost-user-", "vhost-vdpa-", "vhost-scsi", "pvrdma", NULL };
	struct lm_check *c = opaque;

	for (const char *const *p = prefixes; *p; p++)
		if (!strncmp(type, *p, strlen(*p))) {
			found(c, "device %s", type);
			return 1;
		}
	return 0;
}

static int rule_devices(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	static const char *const files[] = { "/dev/vfio/", "/dev/iommu", "/dev/vhost-vdpa", "/dev/vhost-scsi", NULL };
	char path[128];
	int r = qemu_devices_each(q, device_unsafe, c, err);

	if (r < 0)
		return r;
	if (!r && qemu_has_open(q, files, path, sizeof(path))) {
		found(c, "QEMU has %s open", path);
		r = 1;
	}
	if (r)
		return advise(c, LM_CHECK_FAIL,
			      "it writes to guest RAM without QEMU's page table, unseen: unplug it "
			      "(device_del) or start the guest without it");
	found(c, "none that writes to guest RAM unseen");
	return 0;
}

static int rule_discard(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	char what[64];
	int r = qemu_may_discard(q, what, sizeof(what), err);

	if (r < 0)
		return r;
	found(c, "%s", r ? what : "no balloon, no virtio-mem");
	return 0;
}

/*
 * Whether the guest would run by itself once it is loaded.  state_load forbids
 * it (QMP `stop` while QEMU waits for a migration), so it is no failure here.
 */
static int rule_start_paused(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	char next[8];
	bool paused = cmdline_option(q, "-S", next, sizeof(next));

	(void)err;
	found(c, "started with%s -S", paused ? "" : "out");
	if (!paused)
		return advise(c, LM_CHECK_WARN,
			      "migrate-rdma will tell QEMU not to run the guest by itself; with -S QEMU never does");
	return 0;
}

static int rule_tracer(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	char path[64], comm[32], *line = NULL;
	LM_AUTO_FILE FILE *f = NULL;
	size_t cap = 0;
	int tracer = 0;

	(void)err;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)q->pid);
	f = fopen(path, "re");
	while (f && getline(&line, &cap, f) > 0)
		if (sscanf(line, "TracerPid: %d", &tracer) == 1)
			break;
	free(line);
	found(c, "not traced");
	if (!tracer)
		return 0;
	lm_proc_comm(tracer, comm, sizeof(comm));
	found(c, "QEMU is traced by process %d (%s)", tracer, comm);
	return advise(c, LM_CHECK_FAIL, "detach the debugger or tracer first");
}

/* Registering with an RDMA device locks guest RAM, once per device, in whoever runs migrate-rdma. */
static int rule_memlock(struct qemu *q, struct lm_check *c, struct lm_error *err)
{
	struct qemu_memdevs m = { 0 };
	uint64_t limit = lm_memlock_limit(), size = 0;
	int r = qemu_memdevs_read(q, &m, err);

	for (unsigned i = 0; !r && i < m.n; i++)
		size += m.devs[i].size;
	qemu_memdevs_fini(&m);
	if (r)
		return r;
	if (limit == UINT64_MAX) {
		found(c, "no limit here: all of it can be registered with RDMA devices");
		return 0;
	}
	found(c, "at most %llu MiB here, the guest has %llu MiB", (unsigned long long)limit >> 20,
	      (unsigned long long)size >> 20);
	return limit >= size ? 0 :
	       advise(c, LM_CHECK_WARN, "over RDMA, --pin all needs %llu MiB per device on both hosts (ulimit -l unlimited; "
		      "LimitMEMLOCK=infinity in the unit), --pin chunk what the guest uses; --pin odp, where the device can, none",
		      (unsigned long long)size >> 20);
}

static const struct rule rules[] = {
	{ "version", true, true, rule_version },
	{ "guest state", true, false, rule_source_state },
	{ "guest state", false, true, rule_dest_state },
	{ "other migration", true, false, rule_source_migration },
	{ "migration blockers", true, false, rule_blockers },
	{ "capabilities", true, true, rule_capabilities },
	{ "guest memory", true, true, rule_memory },
	{ "memory mappings", true, true, rule_mappings },
	{ "locked memory", true, true, rule_memlock },
	{ "other processes", true, true, rule_sharers },
	{ "devices", true, true, rule_devices },
	{ "discards", true, true, rule_discard },
	{ "starts paused", false, true, rule_start_paused },
	{ "debugger", true, false, rule_tracer },
};

int qemu_rules_check(struct qemu *q, lm_check_fn *fn, void *opaque, struct lm_error *err)
{
	int failures = 0;

	for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++) {
		struct lm_check c = { .status = LM_CHECK_OK, .name = rules[i].name };
		int r;

		if (q->side == LM_SOURCE ? !rules[i].source : !rules[i].dest)
			continue;
		r = rules[i].fn(q, &c, err);
		if (r < 0)
			return r;
		failures += c.status == LM_CHECK_FAIL;
		fn(opaque, &c);
	}
	return failures;
}

LM_API int lm_check_guest(const char *qmp, int32_t pid, lm_check_fn *fn, void *opaque, struct lm_error *err)
{
	const struct lm_qemu_options o = { .qmp = qmp, .pid = pid, .side = LM_SOURCE, .cancel_fd = -1 };
	struct qemu_status st;
	struct qemu *q = NULL;
	int r = qemu_open(&o, &q, err);

	if (r)
		return r;
	r = qemu_status_read(q->qmp, qemu_deadline(q), &st, err);
	if (!r) {
		q->side = strcmp(st.run, "inmigrate") ? LM_SOURCE : LM_DEST;
		r = qemu_rules_check(q, fn, opaque, err);
	}
	qemu_close(q);
	return r;
}
