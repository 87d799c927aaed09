/* SPDX-License-Identifier: Apache-2.0 */
/* What lock backends have in common: notes for the peer, names, options of a URI. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <xxhash.h>
#include "engine/base/cleanup.h"
#include "engine/base/le.h"
#include "lock.h"

#define NOTE_MAGIC 0x4b434f4cu /* "LOCK" */
#define NOTE_VERSION 1
#define NOTE_DISKS_IDLE 1u

struct wire_note {
	struct le32 magic;
	struct le16 version;
	struct le16 kind;
	struct le32 flags;
	struct le32 reserved;
	struct le64 epoch;
	struct le64 detail;
	char scheme[LM_LOCK_SCHEME_MAX];
	char host[LM_LOCK_HOST_MAX];
	uint8_t id[LM_LOCK_ID_SIZE];
	uint8_t pad[LM_LOCK_NOTE_SIZE - 32 - LM_LOCK_SCHEME_MAX - LM_LOCK_HOST_MAX - LM_LOCK_ID_SIZE];
};
_Static_assert(sizeof(struct wire_note) == LM_LOCK_NOTE_SIZE, "size of a note");

void lm_lock_note_put(const struct lm_lock_note *note, uint8_t ret[static LM_LOCK_NOTE_SIZE])
{
	struct wire_note w = {
		.magic = lm_le32(NOTE_MAGIC),
		.version = lm_le16(NOTE_VERSION),
		.kind = lm_le16((uint16_t)note->kind),
		.flags = lm_le32(note->disks_idle ? NOTE_DISKS_IDLE : 0),
		.epoch = lm_le64(note->epoch),
		.detail = lm_le64(note->detail),
	};

	memcpy(w.scheme, note->scheme, sizeof(w.scheme));
	memcpy(w.host, note->host, sizeof(w.host));
	memcpy(w.id, note->id, sizeof(w.id));
	memcpy(ret, &w, sizeof(w));
}

static bool all_zero(const uint8_t *p, size_t n)
{
	while (n && !*p) {
		p++;
		n--;
	}
	return !n;
}

/* A name must end inside its field, with zeros behind it. */
static bool field_valid(const char *field, size_t size)
{
	size_t len = strnlen(field, size);

	return len < size && lm_lock_name_valid(field) && all_zero((const uint8_t *)field + len, size - len);
}

int lm_lock_note_get(const uint8_t bytes[static LM_LOCK_NOTE_SIZE], struct lm_lock_note *ret,
		     struct lm_error *err)
{
	struct wire_note w;
	uint16_t kind;

	memcpy(&w, bytes, sizeof(w));
	kind = lm_le16_get(w.kind);
	if (lm_le32_get(w.magic) != NOTE_MAGIC || lm_le16_get(w.version) != NOTE_VERSION)
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "what the other host sent is no note about a lock, or "
			      "one of another version");
	if (kind < LM_NOTE_ANNOUNCE || kind > LM_NOTE_OFFER || (lm_le32_get(w.flags) & ~NOTE_DISKS_IDLE) ||
	    lm_le32_get(w.reserved) || !all_zero(w.pad, sizeof(w.pad)) ||
	    !field_valid(w.scheme, sizeof(w.scheme)) || !field_valid(w.host, sizeof(w.host)))
		return lm_err(err, -EPROTO, LM_SCOPE_SESSION, "the other host's note about a lock makes no sense");
	*ret = (struct lm_lock_note){
		.kind = (enum lm_lock_note_kind)kind,
		.disks_idle = lm_le32_get(w.flags) & NOTE_DISKS_IDLE,
		.epoch = lm_le64_get(w.epoch),
		.detail = lm_le64_get(w.detail),
	};
	memcpy(ret->scheme, w.scheme, sizeof(w.scheme));
	memcpy(ret->host, w.host, sizeof(w.host));
	memcpy(ret->id, w.id, sizeof(w.id));
	return 0;
}

bool lm_lock_name_valid(const char *name)
{
	size_t len = strlen(name);

	if (!len || len >= LM_LOCK_HOST_MAX)
		return false;
	for (; *name; name++)
		if (!isalnum((unsigned char)*name) && !strchr(".-_", *name))
			return false;
	return true;
}

void lm_lock_host(char ret[static LM_LOCK_HOST_MAX])
{
	LM_AUTO_FILE FILE *f = fopen("/etc/machine-id", "re");
	char id[64] = "";
	struct utsname u;

	if (f && !fgets(id, sizeof(id), f))
		id[0] = 0;
	if (uname(&u))
		u.nodename[0] = 0;
	for (char *p = u.nodename; *p; p++)
		if (!isalnum((unsigned char)*p) && !strchr(".-_", *p))
			*p = '-';
	snprintf(ret, LM_LOCK_HOST_MAX, "%.50s.%08x", *u.nodename ? u.nodename : "host",
		 (unsigned)XXH3_64bits(id, strlen(id)));
}

uint64_t lm_lock_epoch_first(void)
{
	time_t begin = 1735689600; /* 2025-01-01 */
	time_t now = time(NULL);

	return now > begin + 64 ? (uint64_t)(now - begin) / 64 : 1;
}

void lm_lock_remark(struct lm_lock *l, const char *fmt, ...)
{
	size_t at = strlen(l->remark);
	va_list ap;

	if (at && at + 3 < sizeof(l->remark)) {
		memcpy(l->remark + at, "; ", 3);
		at += 2;
	}
	va_start(ap, fmt);
	vsnprintf(l->remark + at, sizeof(l->remark) - at, fmt, ap);
	va_end(ap);
}

void lm_lock_say(struct lm_lock_info *info, const char *fmt, ...)
{
	size_t at = strlen(info->text);
	va_list ap;

	if (at && at + 1 < sizeof(info->text))
		info->text[at++] = '\n';
	va_start(ap, fmt);
	vsnprintf(info->text + at, sizeof(info->text) - at, fmt, ap);
	va_end(ap);
}

bool lm_lock_option(const char *options, const char *key, char *buf, size_t size)
{
	size_t len = strlen(key);

	for (const char *p = options; *p; p += strcspn(p, "&"), p += *p == '&') {
		if (strncmp(p, key, len) || p[len] != '=')
			continue;
		snprintf(buf, size, "%.*s", (int)strcspn(p + len + 1, "&"), p + len + 1);
		return true;
	}
	return false;
}

int lm_lock_options_known(const char *options, const char *const *keys, struct lm_error *err)
{
	for (const char *p = options; *p; p += strcspn(p, "&"), p += *p == '&') {
		size_t len = strcspn(p, "=&");
		const char *const *k = keys;

		while (*k && (strlen(*k) != len || strncmp(*k, p, len)))
			k++;
		if (!*k || p[len] != '=')
			return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "'%.*s' is no option of this lock",
				      (int)strcspn(p, "&"), p);
	}
	return 0;
}
