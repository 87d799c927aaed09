/* SPDX-License-Identifier: Apache-2.0 */
/* What the guest inside says: by its heartbeat page and on its serial line. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "internal.h"
#include "../guest/layout.h"

void rig_guest_beat(const struct rig_vm *vm, struct guest_beat *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (vm->nram && pread(vm->ram[0].fd, ret, sizeof(*ret), GUEST_BEAT_GPA) < 0)
		fail_msg("cannot read the heartbeat of %s: %s", vm->name, strerror(errno));
}

void rig_guest_wait_ready(struct rig_vm *vm)
{
	int64_t end = rig_now_ms() + RIG_WAIT_MS;
	struct guest_beat b;

	while (rig_guest_beat(vm, &b), b.magic != GUEST_BEAT_MAGIC) {
		if (rig_now_ms() > end || !rig_vm_alive(vm))
			fail_msg("guest %s did not start", vm->name);
		rig_sleep_ms(5);
	}
}

bool rig_guest_beats(const struct rig_vm *vm, int timeout_ms)
{
	int64_t end = rig_now_ms() + timeout_ms;
	struct guest_beat first, now;

	rig_guest_beat(vm, &first);
	do {
		rig_sleep_ms(2);
		rig_guest_beat(vm, &now);
		if (now.beat != first.beat)
			return true;
	} while (rig_now_ms() < end);
	return false;
}

static void fail_bad(const struct rig_vm *vm, const struct guest_beat *b)
{
	if (b->bad)
		fail_msg("guest on %s found %lu bad pages, the first %lu: wrote version %lu, read %lu", vm->name,
			 (unsigned long)b->bad, (unsigned long)b->bad_page, (unsigned long)b->bad_want,
			 (unsigned long)b->bad_got);
}

/* Two more ends of a pass: the first may have begun before we asked. */
void rig_guest_assert_well(struct rig_vm *vm)
{
	int64_t end = rig_now_ms() + 3 * RIG_WAIT_MS;
	struct guest_beat first, now;

	rig_guest_beat(vm, &first);
	fail_bad(vm, &first);
	if (!rig_guest_beats(vm, RIG_WAIT_MS))
		fail_msg("the guest does not run on %s", vm->name);
	do {
		rig_sleep_ms(5);
		rig_guest_beat(vm, &now);
		fail_bad(vm, &now);
		if (rig_now_ms() > end)
			fail_msg("the guest on %s does not get through its memory", vm->name);
	} while (now.passes < first.passes + 2);
	assert_int_equal(now.magic, GUEST_BEAT_MAGIC);
}

bool rig_guest_log_has(const struct rig_vm *vm, const char *text)
{
	char *log = rig_read_file(vm->serial);
	bool has = log && strstr(log, text);

	free(log);
	return has;
}

bool rig_guest_wait_log(struct rig_vm *vm, const char *text, int timeout_ms)
{
	int64_t end = rig_now_ms() + timeout_ms;

	while (!rig_guest_log_has(vm, text)) {
		if (rig_now_ms() > end || !rig_vm_alive(vm))
			return false;
		rig_sleep_ms(20);
	}
	return true;
}

void rig_guest_type(const struct rig_vm *vm, const char *line)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(a.sun_path, vm->console, sizeof(a.sun_path));
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || dprintf(fd, "%s\n", line) < 0)
		fail_msg("cannot type on the console of %s: %s", vm->name, strerror(errno));
	rig_sleep_ms(200); /* QEMU drops what it has not read when the client goes */
	close(fd);
}

/* The last one that has it. */
static const char *last_line(const char *log, const char *text)
{
	const char *found = NULL, *at = log;

	while ((at = strstr(at, text)))
		found = at++;
	return found;
}

long long rig_guest_number(const struct rig_vm *vm, const char *line, const char *name)
{
	char *log = rig_read_file(vm->serial);
	const char *at = log ? last_line(log, line) : NULL, *end = at ? strchrnul(at, '\n') : NULL;
	const char *value = at ? strstr(at, name) : NULL;
	long long n = value && value < end ? atoll(value + strlen(name)) : -1;

	free(log);
	return n;
}
