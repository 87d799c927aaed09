/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A peer that talks rubbish, too much, too little, out of turn or another
 * version: a clear error, in time, and the guest and QEMU as they were.
 *
 * Each message is thrown at `receive` by a client and at `send` by a server.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "engine/control/wire.h"
#include "rig.h"

#define BUF_SIZE	(64u << 10)
#define END_MS		15000 /* with --peer-timeout 1s */

static const struct rig_config guest = { .mb = 64, .append = "mb=16 rate=2000" };
static const struct rig_run_options impatient = { .args = { "--peer-timeout", "1s", "--recover-timeout", "1s" } };
/* What these look at is pre-copy, on a slow machine as well. */
static const struct rig_run_options precopy = { .args = { "--postcopy", "never" } };

/* --- what is said ---------------------------------------------------------- */

struct said {
	uint8_t bytes[BUF_SIZE];
	size_t len;
};

static void say(struct said *s, const void *bytes, size_t len)
{
	assert_true(s->len + len <= sizeof(s->bytes));
	memcpy(s->bytes + s->len, bytes, len);
	s->len += len;
}

static void say_header(struct said *s, unsigned type, uint64_t seq, uint32_t len)
{
	struct lm_wire_header h = {
		.magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16((uint16_t)type),
		.len = lm_le32(len), .seq = lm_le64(seq),
	};

	say(s, &h, sizeof(h));
}

static void say_message(struct said *s, unsigned type, uint64_t seq, const void *payload, uint32_t len)
{
	say_header(s, type, seq, len);
	say(s, payload, len);
}

static void say_hello(struct said *s, uint64_t seq, unsigned version, unsigned compat)
{
	struct lm_wire_hello h = {
		.version = lm_le16((uint16_t)version), .compat = lm_le16((uint16_t)compat),
		.software = "hostile 6.6.6",
	};

	say_message(s, LM_MSG_HELLO, seq, &h, sizeof(h));
}

static void good_hello(struct said *s)
{
	say_hello(s, 0, LM_WIRE_VERSION, LM_WIRE_COMPAT);
}

static void nothing(struct said *s)
{
	(void)s;
}

static void garbage(struct said *s)
{
	for (unsigned i = 0; i < 4096; i++)
		s->bytes[s->len++] = (uint8_t)(i * 167 + 13);
}

static void http(struct said *s)
{
	static const char text[] = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n";

	say(s, text, sizeof(text) - 1);
}

static void half_a_header(struct said *s)
{
	say_header(s, LM_MSG_HELLO, 0, sizeof(struct lm_wire_hello));
	s->len = sizeof(struct lm_wire_header) / 2;
}

static void half_a_message(struct said *s)
{
	good_hello(s);
	s->len -= sizeof(struct lm_wire_hello) / 2;
}

static void oversized(struct said *s)
{
	say_header(s, LM_MSG_HELLO, 0, UINT32_MAX);
}

static void just_too_large(struct said *s)
{
	say_header(s, LM_MSG_HELLO, 0, LM_WIRE_PAYLOAD_MAX + 1);
}

static void another_version(struct said *s)
{
	say_hello(s, 0, 99, 99);
}

static void an_unknown_type(struct said *s)
{
	say_message(s, 999, 0, "", 0);
}

static void a_replayed_hello(struct said *s)
{
	good_hello(s);
	good_hello(s);
}

static void a_second_hello(struct said *s)
{
	good_hello(s);
	say_hello(s, 1, LM_WIRE_VERSION, LM_WIRE_COMPAT);
}

static void commit_at_once(struct said *s)
{
	say_message(s, LM_MSG_COMMIT, 0, "", 0);
}

static void commit_after_hello(struct said *s)
{
	good_hello(s);
	say_message(s, LM_MSG_COMMIT, 1, "", 0);
}

static void state_after_hello(struct said *s)
{
	static const uint8_t state[1000];

	good_hello(s);
	say_message(s, LM_MSG_STATE, 1, state, sizeof(state));
}

static void open_of(struct said *s, uint32_t nregions, uint64_t size, uint32_t nlanes)
{
	struct { struct lm_wire_open open; struct lm_wire_region region; } o = {
		.open = { .transports = "tcp", .vmm = "qemu", .machine = "pc-q35-7.2", .vmm_version = "7.2",
			  .vcpus = lm_le32(1), .nlanes = lm_le32(nlanes),
			  .nregions = lm_le32(nregions) },
		.region = { .name = "ram0", .size = lm_le64(size), .page_size = lm_le64(4096) },
	};

	good_hello(s);
	say_message(s, LM_MSG_OPEN, 1, &o, sizeof(o));
}

static void open_with_too_many_regions(struct said *s)
{
	open_of(s, UINT32_MAX, 64 << 20, 1);
}

static void open_with_a_huge_region(struct said *s)
{
	open_of(s, 1, UINT64_MAX - 4095, 1);
}

static void open_with_a_thousand_lanes(struct said *s)
{
	open_of(s, 1, 64 << 20, 1000);
}

static void opened_with_more_lanes_than_asked(struct said *s)
{
	struct lm_wire_opened o = { .transport = "tcp", .nlanes = lm_le32(64) };

	good_hello(s);
	say_message(s, LM_MSG_OPENED, 1, &o, sizeof(o));
}

static void opened_with_no_lane(struct said *s)
{
	struct lm_wire_opened o = { .transport = "tcp", .nlanes = lm_le32(0) };

	good_hello(s);
	say_message(s, LM_MSG_OPENED, 1, &o, sizeof(o));
}

/* Its text would clear the screen of whoever reads it. */
static void an_abort_with_escapes(struct said *s)
{
	struct { struct lm_wire_abort a; char text[16]; } a = {
		.a = { .code = lm_le32(EIO), .len = lm_le32(16) }, .text = "\033[2Jhostile\007hi!",
	};

	good_hello(s);
	say_message(s, LM_MSG_ABORT, 1, &a, sizeof(a));
}

static void an_abort_that_lies_about_its_length(struct said *s)
{
	struct lm_wire_abort a = { .code = lm_le32(EIO), .len = lm_le32(UINT32_MAX) };

	good_hello(s);
	say_message(s, LM_MSG_ABORT, 1, &a, sizeof(a));
}

struct attack {
	const char *name;
	void (*say)(struct said *s);
	const char *words;   /* that the victim's error must have */
	bool hang_up;        /* no more will come, and the victim is told so */
	char at;             /* 's' the source only, 'd' the destination only, 0 both */
	bool ends_receive;   /* else it is one stranger more, and receive goes on waiting */
};

static const struct attack attacks[] = {
	{ "silence", nothing, "answer", false, 0 },
	{ "hanging_up", nothing, "clos", true, 0 },
	{ "garbage", garbage, "no migrate-rdma control message", false, 0 },
	{ "http", http, "no migrate-rdma control message", false, 0 },
	{ "half_a_header_and_silence", half_a_header, "only a part of a message", false, 0 },
	{ "half_a_header_and_the_end", half_a_header, "clos", true, 0 },
	{ "half_a_message_and_the_end", half_a_message, "clos", true, 0 },
	{ "an_oversized_message", oversized, "payload above", false, 0 },
	{ "a_message_of_a_byte_too_much", just_too_large, "payload above", false, 0 },
	{ "another_version", another_version, "protocol version 99", false, 0, true },
	{ "an_unknown_type", an_unknown_type, "unknown type", false, 0 },
	{ "a_replayed_hello", a_replayed_hello, "replayed", false, 0, true },
	{ "a_second_hello", a_second_hello, "HELLO", false, 0, true },
	{ "commit_at_once", commit_at_once, "COMMIT", false, 0 },
	{ "commit_after_hello", commit_after_hello, "COMMIT", false, 0, true },
	{ "state_after_hello", state_after_hello, "STATE", false, 0, true },
	{ "open_with_too_many_regions", open_with_too_many_regions, "number of regions", false, 'd', true },
	{ "open_with_a_huge_region", open_with_a_huge_region, "region size", false, 'd', true },
	{ "open_with_a_thousand_lanes", open_with_a_thousand_lanes, "number of lanes", false, 'd', true },
	{ "opened_with_more_lanes_than_asked", opened_with_more_lanes_than_asked, "number of lanes", false, 's' },
	{ "opened_with_no_lane", opened_with_no_lane, "number of lanes", false, 's' },
	{ "an_abort_with_escapes", an_abort_with_escapes, "hostile", false, 0, true },
	{ "an_abort_that_lies", an_abort_that_lies_about_its_length, "ABORT: length", false, 0, true },
};
#define NATTACKS (sizeof(attacks) / sizeof(*attacks))

/* --- sockets ----------------------------------------------------------------- */

static int listener(char address[32])
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 4), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	snprintf(address, 32, "127.0.0.1:%u", ntohs(a.sin_port));
	return fd;
}

static int dial(const char *address)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	a.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static int let_in(int listen_fd)
{
	struct pollfd p = { .fd = listen_fd, .events = POLLIN };

	assert_int_equal(poll(&p, 1, RIG_WAIT_MS), 1);
	return accept(listen_fd, NULL, NULL);
}

static int speak(int fd, const void *bytes, size_t len, bool hang_up)
{
	if (len && send(fd, bytes, len, MSG_NOSIGNAL) < 0)
		print_message("the victim hung up first: %s\n", strerror(errno));
	if (hang_up)
		shutdown(fd, SHUT_WR); /* close() would be a reset where something is left unread */
	return fd;
}

/* --- the victims ------------------------------------------------------------- */

static void assert_error(struct rig_run *r, const struct attack *attack)
{
	int code = rig_run_wait(r, END_MS);
	struct json_object *e = rig_run_event(r, "completed", 0), *error = NULL;
	const char *text;

	if (code <= 0)
		fail_msg("%s ended with %d", r->proc->name, code);
	if (e)
		json_object_object_get_ex(e, "error", &error);
	text = error ? json_object_to_json_string(error) : "no error";
	if (!strstr(text, attack->words))
		fail_msg("the error does not say \"%s\": %s", attack->words, text);
	assert_null(strstr(text, "\\u001b"));
	assert_false(rig_log_has(r->proc, "\033[2J"));
}

static int attack_receive(struct rig_run *receive, const struct attack *attack)
{
	struct said *said = calloc(1, sizeof(*said));
	int fd;

	assert_non_null(said);
	attack->say(said);
	fd = speak(dial(receive->address), said->bytes, said->len, attack->hang_up);
	free(said);
	return fd;
}

static void receive_ends_and_leaves_qemu_alone(struct rig *rig)
{
	const struct attack *attack = rig_arg(rig);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	struct rig_run *receive = rig_receive(b, &impatient);
	int fd = attack_receive(receive, attack);
	char status[32];

	assert_error(receive, attack);
	close(fd);
	rig_vm_status(b, status);
	assert_string_equal(status, "inmigrate");
	assert_true(rig_ram_allocated(b) < 1 << 20);
}

/* A port scanner or a health check must not end the wait for the real one. */
static void receive_goes_on_waiting(struct rig *rig)
{
	const struct attack *attack = rig_arg(rig);
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	struct rig_run *receive = rig_receive(b, &impatient), *send;
	int64_t end = rig_now_ms() + END_MS;
	int fd = attack_receive(receive, attack);

	while (!rig_run_event_is(receive, "log", "level", "warning", 100)) {
		if (rig_now_ms() > end)
			fail_msg("receive does not notice it");
	}
	if (!strstr(json_object_to_json_string(receive->events), attack->words))
		fail_msg("receive does not say \"%s\": %s", attack->words,
			 json_object_to_json_string(receive->events));
	rig_guest_wait_ready(a);
	send = rig_send(a, receive->address, NULL);
	assert_int_equal(rig_run_wait(send, END_MS), 0);
	assert_int_equal(rig_run_wait(receive, END_MS), 0);
	close(fd);
	rig_guest_assert_well(b);
}

static void send_withstands(struct rig *rig)
{
	const struct attack *attack = rig_arg(rig);
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	struct said *said = calloc(1, sizeof(*said));
	char address[32], *before, *after;
	struct rig_run *send;
	int l = listener(address), fd;

	assert_non_null(said);
	rig_guest_wait_ready(a);
	before = rig_vm_migration_settings(a);
	send = rig_send(a, address, &impatient);
	fd = let_in(l);
	attack->say(said);
	fd = speak(fd, said->bytes, said->len, attack->hang_up);
	free(said);
	assert_error(send, attack);
	close(fd);
	close(l);
	assert_true(rig_vm_running(a));
	assert_int_equal(rig_longest_pause_us(a), 0);
	after = rig_vm_migration_settings(a);
	assert_string_equal(after, before);
	free(before);
	free(after);
	rig_guest_assert_well(a);
}

/* --- in the middle of a good migration ---------------------------------------- */

static void strangers_do_not_disturb_a_migration(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	struct rig_run *receive, *send;
	struct said *said = calloc(1, sizeof(*said));
	int fds[12];

	assert_non_null(said);
	garbage(said);
	rig_guest_wait_ready(a);
	receive = rig_receive(b, &precopy);
	send = rig_send(a, receive->address, &(struct rig_run_options){ .fault = "round:sleep=300" });
	assert_non_null(rig_run_event(send, "round", RIG_WAIT_MS));
	for (unsigned i = 0; i < sizeof(fds) / sizeof(*fds); i++)
		fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	for (unsigned i = 0; i < sizeof(fds) / sizeof(*fds); i++) {
		struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

		to.sin_port = htons((uint16_t)atoi(strrchr(receive->address, ':') + 1));
		connect(fds[i], (struct sockaddr *)&to, sizeof(to)); /* may be refused by now */
		rig_sleep_ms(2);
		speak(fds[i], said->bytes, said->len, i % 2);
	}
	free(said);
	assert_int_equal(rig_run_wait(send, END_MS), 0);
	assert_int_equal(rig_run_wait(receive, END_MS), 0);
	for (unsigned i = 0; i < sizeof(fds) / sizeof(*fds); i++)
		close(fds[i]);
	rig_guest_assert_well(b);
}

/* All that a source said, COMMIT included, said again to another destination. */
static void a_replayed_session_runs_no_guest(struct rig *rig)
{
	struct rig_vm *a = rig_vm_start(rig, "A", &guest, RIG_RUNS);
	struct rig_vm *b = rig_vm_start(rig, "B", &guest, RIG_WAITS);
	struct rig_vm *c = rig_vm_start(rig, "C", &guest, RIG_WAITS);
	struct rig_relay *relay = rig_relay_start(rig);
	struct rig_run *receive, *send;
	const uint8_t *said;
	size_t len;
	int fd;

	rig_guest_wait_ready(a);
	receive = rig_receive(b, &precopy);
	rig_relay_to(relay, receive->address);
	send = rig_send(a, rig_relay_address(relay), NULL);
	assert_int_equal(rig_run_wait(send, END_MS), 0);
	assert_int_equal(rig_run_wait(receive, END_MS), 0);
	said = rig_relay_said(relay, &len);
	assert_true(len > 50000); /* the device state is in it */
	receive = rig_receive(c, &impatient);
	fd = speak(dial(receive->address), said, len, false);
	assert_true(rig_run_wait(receive, END_MS) > 0);
	close(fd);
	assert_false(rig_vm_alive(c) && rig_vm_running(c));
	assert_false(rig_vm_wait_event(c, "RESUME", 100));
	rig_guest_assert_well(b);
}

/* ------------------------------------------------------------------------------ */

#define FIXED_TESTS 2

static size_t add_attacks(struct CMUnitTest *tests, size_t n)
{
	static struct rig_test rig_tests[2 * NATTACKS];
	static char names[2 * NATTACKS][80];
	size_t at = 0;

	for (size_t i = 0; i < 2 * NATTACKS; i++) {
		const struct attack *attack = &attacks[i / 2];
		bool at_send = i % 2;

		if (attack->at && attack->at != (at_send ? 's' : 'd'))
			continue;
		rig_tests[at] = (struct rig_test){ at_send ? send_withstands : attack->ends_receive ?
						   receive_ends_and_leaves_qemu_alone : receive_goes_on_waiting,
						   attack };
		snprintf(names[at], sizeof(names[at]), "%s_withstands_%s", at_send ? "send" : "receive",
			 attack->name);
		tests[n++] = (struct CMUnitTest){ names[at], rig_body, rig_setup, rig_teardown, &rig_tests[at] };
		at++;
	}
	return n;
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[2 * NATTACKS + FIXED_TESTS] = {
		RIG_TEST(strangers_do_not_disturb_a_migration),
		RIG_TEST(a_replayed_session_runs_no_guest),
	};

	return rig_main(argc, argv, tests, add_attacks(tests, FIXED_TESTS));
}
