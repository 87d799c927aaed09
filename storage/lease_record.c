/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "engine/base/cleanup.h"
#include "engine/base/le.h"
#include "lease_record.h"

#define READ_TRIES 5 /* without the lock: somebody may just be writing */

struct disk_record {
	uint8_t magic[8];
	struct le32 version;
	struct le32 state;
	struct le64 epoch;
	char owner[LM_LOCK_HOST_MAX];
	char next[LM_LOCK_HOST_MAX];
	uint8_t id[LM_LOCK_ID_SIZE];
	struct le64 nonce;
	uint8_t reserved[512 - 8 - 8 - 8 - 2 * LM_LOCK_HOST_MAX - LM_LOCK_ID_SIZE - 8 - 8];
	struct le64 sum; /* XXH3 of all before it */
};
_Static_assert(sizeof(struct disk_record) == 512, "a record is a sector");

static const uint8_t magic[8] = { 'L', 'M', 'L', 'E', 'A', 'S', 'E', '\n' };

static uint64_t record_sum(const struct disk_record *d)
{
	return XXH3_64bits(d, offsetof(struct disk_record, sum));
}

static int page_alloc(uint8_t **ret, struct lm_error *err)
{
	void *p = NULL;

	if (posix_memalign(&p, LEASE_SIZE, LEASE_SIZE))
		return lm_err(err, -ENOMEM, LM_SCOPE_OPERATION, "no memory");
	memset(p, 0, LEASE_SIZE);
	*ret = p;
	return 0;
}

static bool decode(const struct disk_record *d, struct lease_record *ret)
{
	uint32_t state = lm_le32_get(d->state);
	bool ours = !memcmp(d->magic, magic, sizeof(magic));

	*ret = (struct lease_record){ .epoch = ours ? lm_le64_get(d->epoch) : 0 };
	if (!ours || lm_le64_get(d->sum) != record_sum(d) || lm_le32_get(d->version) != 1 ||
	    state < LEASE_FREE || state > LEASE_OFFERED ||
	    d->owner[LM_LOCK_HOST_MAX - 1] || d->next[LM_LOCK_HOST_MAX - 1])
		return false;
	ret->state = (enum lease_state)state;
	memcpy(ret->owner, d->owner, sizeof(ret->owner));
	memcpy(ret->next, d->next, sizeof(ret->next));
	memcpy(ret->id, d->id, sizeof(ret->id));
	ret->nonce = lm_le64_get(d->nonce);
	return true;
}

/* Bytes read (0: an empty file), or a negative errno. */
static ssize_t read_page(int fd, uint8_t *page)
{
	ssize_t n;

	memset(page, 0, LEASE_SIZE);
	do
		n = pread(fd, page, LEASE_SIZE, 0);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

int lease_record_read(int fd, struct lease_record *ret, struct lm_error *err)
{
	LM_AUTO_FREE uint8_t *page = NULL;
	ssize_t n = 0;
	int r = page_alloc(&page, err);

	if (r)
		return r;
	for (unsigned i = 0; i < READ_TRIES; i++) {
		struct disk_record d;

		n = read_page(fd, page);
		if (n < 0)
			return lm_err_errno(err, (int)n, LM_SCOPE_OPERATION, "cannot read the lease");
		memcpy(&d, page, sizeof(d));
		if (n >= (ssize_t)sizeof(d) && decode(&d, ret))
			return 0;
		if (n > 0)
			usleep(1000);
	}
	if (n > 0)
		return lm_err(err, -EUCLEAN, LM_SCOPE_OPERATION, "what lies there is not a lease, or a damaged one: it "
			      "counts as held by somebody");
	*ret = (struct lease_record){ .state = LEASE_NEW };
	return 0;
}

static void encode(const struct lease_record *record, uint8_t *page)
{
	struct disk_record d = {
		.version = lm_le32(1),
		.state = lm_le32(record->state),
		.epoch = lm_le64(record->epoch),
		.nonce = lm_le64(record->nonce),
	};

	memcpy(d.magic, magic, sizeof(magic));
	memcpy(d.owner, record->owner, sizeof(d.owner));
	memcpy(d.next, record->next, sizeof(d.next));
	memcpy(d.id, record->id, sizeof(d.id));
	d.sum = lm_le64(record_sum(&d));
	memcpy(page, &d, sizeof(d));
}

static int random_bytes(void *to, size_t n, struct lm_error *err)
{
	if (getrandom(to, n, 0) != (ssize_t)n)
		return lm_err(err, -EIO, LM_SCOPE_OPERATION, "the kernel gives no random numbers");
	return 0;
}

int lease_record_write(int fd, struct lease_record *record, struct lm_error *err)
{
	static const uint8_t none[sizeof(record->id)];
	LM_AUTO_FREE uint8_t *page = NULL, *back = NULL;
	ssize_t n;
	int r = page_alloc(&page, err);

	if (!r)
		r = page_alloc(&back, err);
	if (!r)
		r = random_bytes(&record->nonce, sizeof(record->nonce), err);
	if (!r && !memcmp(record->id, none, sizeof(none)))
		r = random_bytes(record->id, sizeof(record->id), err);
	if (r)
		return r;
	encode(record, page);
	do
		n = pwrite(fd, page, LEASE_SIZE, 0); /* the file is open with O_DSYNC */
	while (n < 0 && errno == EINTR);
	if (n != LEASE_SIZE)
		return lm_err_errno(err, n < 0 ? -errno : -EIO, LM_SCOPE_OPERATION, "cannot write the lease");
	n = read_page(fd, back);
	if (n != LEASE_SIZE || memcmp(page, back, LEASE_SIZE))
		return lm_err(err, -EIO, LM_SCOPE_OPERATION, "the lease does not read as it was written");
	return 0;
}
