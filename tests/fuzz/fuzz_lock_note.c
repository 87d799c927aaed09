/* SPDX-License-Identifier: Apache-2.0 */
/* A note about a storage lock, as it comes from the other host. */
#include <assert.h>
#include <string.h>
#include "fuzz.h"
#include "engine/lock/lock.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t bytes[LM_LOCK_NOTE_SIZE] = { 0 }, again[LM_LOCK_NOTE_SIZE];
	struct lm_lock_note note;
	struct lm_error err;

	memcpy(bytes, data, size < sizeof(bytes) ? size : sizeof(bytes));
	if (lm_lock_note_get(bytes, &note, &err))
		return 0;
	assert(lm_lock_name_valid(note.host) && lm_lock_name_valid(note.scheme));
	assert(strlen(note.scheme) < sizeof(note.scheme));
	lm_lock_note_put(&note, again);
	assert(!memcmp(bytes, again, sizeof(bytes)));
	return 0;
}
