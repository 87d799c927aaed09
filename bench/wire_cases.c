/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include "engine/control/wire.h"
#include "wire_cases.h"

#define EXTENTS LM_WIRE_EXTENTS_MAX

static uint8_t buf[LM_WIRE_PAYLOAD_MAX];
static size_t buf_len;
static struct lm_open open_in, open_out;
static struct lm_bitmap resident;

/* ---- header ---- */

static void nothing(void)
{
}

static size_t header_encode(void)
{
	struct lm_wire_header h = { .magic = lm_le32(LM_WIRE_MAGIC), .type = lm_le16(LM_MSG_STATE),
				    .len = lm_le32(4096), .seq = lm_le64(9) };

	memcpy(buf, &h, sizeof(h));
	return sizeof(h);
}

static int header_decode(void)
{
	struct lm_wire_header h;
	unsigned type;
	uint32_t len;

	memcpy(&h, buf, sizeof(h));
	return lm_wire_get_header(&h, 9, &type, &len, NULL);
}

/* ---- OPEN ---- */

static void open_prepare(unsigned nregions)
{
	memset(&open_in, 0, sizeof(open_in));
	strcpy(open_in.transports, "tcp");
	strcpy(open_in.info.vmm, "qemu");
	strcpy(open_in.info.machine, "pc-q35-7.2");
	open_in.nlanes = 4;
	open_in.nregions = nregions;
	for (unsigned i = 0; i < nregions; i++) {
		snprintf(open_in.regions[i].name, sizeof(open_in.regions[i].name), "ram%u", i);
		open_in.regions[i].size = UINT64_C(1) << 30;
		open_in.regions[i].page_size = LM_PAGE_SIZE;
	}
}

static void open_one(void)
{
	open_prepare(1);
}

static void open_most(void)
{
	open_prepare(LM_REGIONS_MAX);
}

static size_t open_encode(void)
{
	buf_len = lm_wire_put_open(buf, &open_in);
	return buf_len;
}

static int open_decode(void)
{
	return lm_wire_get_open(buf, buf_len, &open_out, NULL);
}

/* ---- RESIDENT: the only message whose number grows with the guest ---- */

static void resident_prepare(void)
{
	if (!resident.words && lm_bitmap_init(&resident, UINT64_C(1) << 22)) /* 16 GiB */
		perror("bitmap");
}

static size_t resident_encode(void)
{
	struct lm_wire_resident *w = (void *)buf;
	struct lm_wire_extent *x = (void *)(w + 1);

	w->region = lm_le32(0);
	w->count = lm_le32(EXTENTS);
	for (uint64_t i = 0; i < EXTENTS; i++)
		x[i] = (struct lm_wire_extent){ lm_le64(i * 1024), lm_le64(512) };
	buf_len = sizeof(*w) + EXTENTS * sizeof(*x);
	return buf_len;
}

static int resident_decode(void)
{
	return lm_wire_get_resident(buf, buf_len, &resident, 1, NULL);
}

const struct wire_case wire_cases[] = {
	{ "header", nothing, header_encode, header_decode },
	{ "open/1_region", open_one, open_encode, open_decode },
	{ "open/256_regions", open_most, open_encode, open_decode },
	{ "resident/4096_extents", resident_prepare, resident_encode, resident_decode },
	{ NULL, NULL, NULL, NULL },
};
