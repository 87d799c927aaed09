/* SPDX-License-Identifier: Apache-2.0 */
/* HELLO and OPEN: what comes back as it was made, and what is refused. */
#include "unit.h"
#include "engine/control/wire.h"

static uint8_t buf[LM_WIRE_PAYLOAD_MAX];
static struct lm_error err;

/* ---- HELLO ---- */

static void hello_comes_back_as_it_was_made(void **state)
{
	char software[32];
	size_t len = lm_wire_put_hello(buf);

	(void)state;
	assert_int_equal(len, sizeof(struct lm_wire_hello));
	assert_ok(lm_wire_get_hello(buf, len, software, &err), err);
	assert_string_equal(software, lm_version());
}

static void a_longer_hello_of_a_later_version_is_taken(void **state)
{
	char software[32];
	size_t len = lm_wire_put_hello(buf);

	(void)state;
	memset(buf + len, 0xff, 100);
	assert_ok(lm_wire_get_hello(buf, len + 100, software, &err), err);
}

static void a_truncated_hello_is_refused(void **state)
{
	char software[32];
	size_t full = lm_wire_put_hello(buf);

	(void)state;
	for (size_t len = 0; len < full; len++)
		assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTO, err);
}

static void versions_that_do_not_match_are_told_apart_from_nonsense(void **state)
{
	struct lm_wire_hello *h = (void *)buf;
	char software[32];
	size_t len = lm_wire_put_hello(buf);

	(void)state;
	h->version = lm_le16(LM_WIRE_COMPAT - 1);
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTONOSUPPORT, err);
	lm_wire_put_hello(buf);
	h->version = lm_le16(9);
	h->compat = lm_le16(LM_WIRE_VERSION + 1);
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTONOSUPPORT, err);
	/* Newer, but understood by us. */
	h->compat = lm_le16(LM_WIRE_VERSION);
	assert_ok(lm_wire_get_hello(buf, len, software, &err), err);
}

static void software_names_that_cannot_be_printed_are_refused(void **state)
{
	struct lm_wire_hello *h = (void *)buf;
	char software[32];
	size_t len = lm_wire_put_hello(buf);

	(void)state;
	memset(h->software, 'a', sizeof(h->software));
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTO, err);
	lm_wire_put_hello(buf);
	h->software[3] = '\033';
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTO, err);
	h->software[3] = (char)0xff;
	assert_fails(lm_wire_get_hello(buf, len, software, &err), -EPROTO, err);
}

/* ---- OPEN ---- */

static void open_fill(struct lm_open *o, unsigned nregions)
{
	memset(o, 0, sizeof(*o));
	strcpy(o->transports, "tcp");
	strcpy(o->info.vmm, "qemu");
	strcpy(o->info.machine, "pc-q35-7.2");
	strcpy(o->info.version, "7.2.22");
	o->info.vcpus = 4;
	o->info.running = true;
	o->nlanes = 2;
	o->nregions = nregions;
	for (unsigned i = 0; i < nregions; i++) {
		snprintf(o->regions[i].name, sizeof(o->regions[i].name), "ram%u", i);
		o->regions[i].size = (uint64_t)(i + 1) << 21;
		o->regions[i].page_size = i % 2 ? 2 << 20 : 4096;
	}
}

static size_t open_put(unsigned nregions)
{
	static struct lm_open o;

	open_fill(&o, nregions);
	return lm_wire_put_open(buf, &o);
}

static struct lm_open got; /* large */

static void open_comes_back_as_it_was_made(void **state)
{
	static const unsigned counts[] = { 1, 2, LM_REGIONS_MAX };
	static struct lm_open o;

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		size_t len = open_put(counts[i]);

		open_fill(&o, counts[i]);
		assert_true(len <= LM_WIRE_PAYLOAD_MAX);
		memset(&got, 0xff, sizeof(got));
		assert_ok(lm_wire_get_open(buf, len, &got, &err), err);
		assert_memory_equal(&got, &o, sizeof(o));
	}
}

static void verify_and_a_paused_guest_are_carried(void **state)
{
	static struct lm_open o;

	(void)state;
	open_fill(&o, 1);
	o.info.running = false;
	o.verify = true;
	o.nlocks = LM_LOCKS_MAX;
	assert_ok(lm_wire_get_open(buf, lm_wire_put_open(buf, &o), &got, &err), err);
	assert_int_equal(got.nlocks, LM_LOCKS_MAX);
	assert_false(got.info.running);
	assert_true(got.verify);
}

static void an_open_of_any_other_length_is_refused(void **state)
{
	size_t full = open_put(3);

	(void)state;
	for (size_t len = 0; len < full + 200; len++)
		if (len != full)
			assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err);
}

static void impossible_numbers_in_open_are_refused(void **state)
{
	struct lm_wire_open *o = (void *)buf;
	struct lm_wire_region *r = (void *)(o + 1);

	(void)state;
#define refused(field, value)                                                      \
	do {                                                                       \
		size_t len = open_put(2);                                          \
		field = value;                                                     \
		assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err); \
	} while (0)
	refused(o->nregions, lm_le32(0));
	refused(o->nregions, lm_le32(1));
	refused(o->nregions, lm_le32(3));
	refused(o->nregions, lm_le32(LM_REGIONS_MAX + 1));
	refused(o->nregions, lm_le32(UINT32_MAX));
	refused(o->nregions, lm_le32(0x10000002)); /* times 80, in 32 bits: 160 */
	refused(o->nlanes, lm_le32(0));
	refused(o->nlanes, lm_le32(LM_LANES_MAX + 1));
	refused(o->nlanes, lm_le32(UINT32_MAX));
	refused(o->flags, lm_le32(4));
	refused(o->flags, lm_le32(0x80000001));
	refused(o->flags, lm_le32((LM_LOCKS_MAX + 1) << LM_OPEN_LOCKS_SHIFT));
	refused(o->flags, lm_le32(0x10001)); /* the bit above the number of locks */
	refused(r[1].size, lm_le64(0));
	refused(r[1].size, lm_le64((2 << 20) + 4096)); /* no multiple of its page size */
	refused(r[0].size, lm_le64(4097));
	refused(r[0].size, lm_le64(LM_REGION_SIZE_MAX + 4096));
	refused(r[0].size, lm_le64(UINT64_MAX - 4095));
	refused(r[0].page_size, lm_le64(0));
	refused(r[0].page_size, lm_le64(2048));
	refused(r[0].page_size, lm_le64(12288));
	refused(r[0].page_size, lm_le64(UINT64_C(1) << 31));
	refused(r[0].page_size, lm_le64(UINT64_C(1) << 63));
#undef refused
}

static void the_largest_numbers_in_open_are_taken(void **state)
{
	struct lm_wire_open *o = (void *)buf;
	struct lm_wire_region *r = (void *)(o + 1);
	size_t len = open_put(1);

	(void)state;
	o->nlanes = lm_le32(LM_LANES_MAX);
	r->size = lm_le64(LM_REGION_SIZE_MAX);
	r->page_size = lm_le64(LM_RUN_MAX);
	assert_ok(lm_wire_get_open(buf, len, &got, &err), err);
	assert_int_equal(got.regions[0].size, LM_REGION_SIZE_MAX);
}

static void texts_in_open_must_end_and_be_printable(void **state)
{
	struct lm_wire_open *o = (void *)buf;
	struct lm_wire_region *r = (void *)(o + 1);
	struct { char *at; size_t size; } fields[] = {
		{ o->transports, sizeof(o->transports) }, { o->vmm, sizeof(o->vmm) },
		{ o->machine, sizeof(o->machine) },     { o->vmm_version, sizeof(o->vmm_version) },
		{ r[0].name, sizeof(r[0].name) },       { r[1].name, sizeof(r[1].name) },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		size_t len = open_put(2);

		memset(fields[i].at, 'a', fields[i].size);
		assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err);
		fields[i].at[fields[i].size - 1] = 0;
		assert_ok(lm_wire_get_open(buf, len, &got, &err), err);
		fields[i].at[0] = '\n';
		assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err);
	}
}

static void a_region_without_a_name_is_refused(void **state)
{
	struct lm_wire_region *r = (void *)(buf + sizeof(struct lm_wire_open));
	size_t len = open_put(1);

	(void)state;
	memset(r->name, 0, sizeof(r->name));
	assert_fails(lm_wire_get_open(buf, len, &got, &err), -EPROTO, err);
}

static void texts_that_are_too_long_are_cut_when_sent(void **state)
{
	static struct lm_open o;

	(void)state;
	open_fill(&o, 1);
	memset(o.transports, 't', sizeof(o.transports)); /* not even terminated */
	assert_ok(lm_wire_get_open(buf, lm_wire_put_open(buf, &o), &got, &err), err);
	assert_int_equal(strspn(got.transports, "t"), sizeof(got.transports) - 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(hello_comes_back_as_it_was_made),
		cmocka_unit_test(a_longer_hello_of_a_later_version_is_taken),
		cmocka_unit_test(a_truncated_hello_is_refused),
		cmocka_unit_test(versions_that_do_not_match_are_told_apart_from_nonsense),
		cmocka_unit_test(software_names_that_cannot_be_printed_are_refused),
		cmocka_unit_test(open_comes_back_as_it_was_made),
		cmocka_unit_test(verify_and_a_paused_guest_are_carried),
		cmocka_unit_test(an_open_of_any_other_length_is_refused),
		cmocka_unit_test(impossible_numbers_in_open_are_refused),
		cmocka_unit_test(the_largest_numbers_in_open_are_taken),
		cmocka_unit_test(texts_in_open_must_end_and_be_printable),
		cmocka_unit_test(a_region_without_a_name_is_refused),
		cmocka_unit_test(texts_that_are_too_long_are_cut_when_sent),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
