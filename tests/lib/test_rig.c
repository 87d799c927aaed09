/* SPDX-License-Identifier: Apache-2.0 */
/* The rig's own witnesses must see what they are there for. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <unistd.h>
#include "rig.h"
#include "../guest/layout.h"

static const struct rig_config guest = { .append = "mb=16 rate=1000" };

static void a_guest_starts_and_is_well(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);

	rig_guest_wait_ready(a);
	rig_guest_assert_well(a);
	assert_true(rig_vm_running(a));
	rig_qmp_do(a, "stop", NULL);
	assert_false(rig_guest_beats(a, 50));
	assert_true(rig_vm_wait_event(a, "STOP", RIG_WAIT_MS));
}

static void two_running_guests_are_seen(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_STOPPED);
	char how[128];

	rig_guest_wait_ready(a);
	assert_false(rig_saw_two(a, b, how, sizeof(how)));
	rig_qmp_do(b, "cont", NULL);
	assert_true(rig_saw_two(a, b, how, sizeof(how)));
}

static void two_moving_heartbeats_are_seen(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_STOPPED);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_RUNS);
	char how[128];
	int64_t end;

	rig_guest_wait_ready(b);
	rig_watch(a, b);
	rig_sleep_ms(50);
	assert_false(rig_saw_two(a, b, how, sizeof(how)));
	rig_ram_fill(a, 0, GUEST_BEAT_GPA, 4096, 1); /* a beat in A after B's own */
	end = rig_now_ms() + RIG_WAIT_MS;
	while (!rig_saw_two(a, b, how, sizeof(how)) && rig_now_ms() < end)
		rig_sleep_ms(2);
	assert_true(rig_saw_two(a, b, how, sizeof(how)));
}

static void one_guest_after_the_other_is_no_two(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_STOPPED);
	char how[128] = "";

	rig_guest_wait_ready(a);
	rig_qmp_do(a, "stop", NULL);
	rig_qmp_do(b, "cont", NULL);
	rig_guest_wait_ready(b);
	rig_qmp_do(b, "stop", NULL);
	rig_sleep_ms(30);
	rig_qmp_do(a, "cont", NULL);
	if (rig_saw_two(a, b, how, sizeof(how)))
		fail_msg("%s", how);
	assert_in_range(rig_longest_pause_us(a), 30000, 20000000);
}

static void a_different_byte_in_ram_is_found(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_STOPPED);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_STOPPED);
	char where[128];
	uint64_t before;

	rig_ram_fill(a, 0, 40 << 20, 8192, 0);
	assert_true(rig_ram_equal(a, b, where, sizeof(where))); /* zeros and a hole */
	before = rig_ram_allocated(b);
	assert_true(rig_ram_equal(a, b, where, sizeof(where)));
	assert_int_equal(rig_ram_allocated(b), before);
	rig_ram_fill(b, 0, 48 << 20, 4096, 7);
	assert_false(rig_ram_equal(a, b, where, sizeof(where)));
	assert_non_null(strstr(where, "0x3000000"));
	rig_ram_discard(b, 0, 48 << 20, 4096);
	assert_true(rig_ram_equal(a, b, where, sizeof(where)));
}

static int listener(struct sockaddr_in *a)
{
	socklen_t len = sizeof(*a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*a = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	assert_int_equal(bind(fd, (struct sockaddr *)a, sizeof(*a)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)a, &len), 0);
	return fd;
}

static int client(const char *address)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	a.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static void a_cut_reaches_both_sides(struct rig *rig)
{
	struct sockaddr_in a;
	int l = listener(&a), c, s;
	struct rig_relay *r;
	char text[32], byte;

	snprintf(text, sizeof(text), "127.0.0.1:%u", ntohs(a.sin_port));
	r = rig_relay_start(rig);
	rig_relay_to(r, text);
	c = client(rig_relay_address(r));
	s = accept(l, NULL, NULL);
	assert_int_equal(write(c, "x", 1), 1);
	assert_int_equal(read(s, &byte, 1), 1);
	assert_int_equal(write(s, "y", 1), 1);
	assert_int_equal(read(c, &byte, 1), 1);
	assert_int_equal(byte, 'y');
	rig_relay_cut(r);
	assert_true(read(s, &byte, 1) <= 0);
	assert_true(read(c, &byte, 1) <= 0);
	close(c);
	close(s);
	close(l);
}

static void what_a_child_leaves_behind_is_ended(struct rig *rig)
{
	const char *const argv[] = { "sh", "-c", "sleep 1000 & echo $! >$0; exit 0", NULL, NULL };
	const char *line[] = { argv[0], argv[1], argv[2], NULL, NULL };
	char path[RIG_PATH_MAX], *text;
	struct rig_proc *p;

	rig_path(rig, path, "pid");
	line[3] = path;
	p = rig_spawn(rig, "sh", line, NULL, -1);
	assert_true(rig_proc_ended(p, RIG_WAIT_MS));
	text = rig_read_file(path);
	assert_non_null(text);
	assert_int_equal(kill(atoi(text), 0), 0);
	assert_false(rig_orphans_gone(rig, 0)); /* it has come to us */
	free(text);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(a_guest_starts_and_is_well),
		RIG_TEST(two_running_guests_are_seen),
		RIG_TEST(two_moving_heartbeats_are_seen),
		RIG_TEST(one_guest_after_the_other_is_no_two),
		RIG_TEST(a_different_byte_in_ram_is_found),
		RIG_TEST(a_cut_reaches_both_sides),
		RIG_TEST(what_a_child_leaves_behind_is_ended),
	};

	return rig_main(argc, argv, tests, sizeof(tests) / sizeof(*tests));
}
