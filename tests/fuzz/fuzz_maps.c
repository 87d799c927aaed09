/* SPDX-License-Identifier: Apache-2.0 */
/* /proc/PID/maps, whose names are chosen by whoever maps the files. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "fuzz.h"
#include "kvm-glue/maps.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);
	struct lm_maps m = { 0 };
	struct lm_maprun run;

	memcpy(text, data, size);
	text[size] = 0;
	if (lm_maps_parse(text, &m))
		return 0;
	for (size_t i = 0; i < m.n; i++) {
		assert(m.maps[i].start < m.maps[i].end);
		assert(m.maps[i].name >= m.text && m.maps[i].name <= m.text + size);
		lm_map_name_is(&m.maps[i], "/dev/shm/ram");
		lm_maps_find(&m, m.maps[i].dev, m.maps[i].ino, m.maps[i].offset, m.maps[i].end - m.maps[i].start, &run);
		lm_maps_find(&m, m.maps[i].dev, m.maps[i].ino, 0, UINT64_MAX, &run);
	}
	lm_maps_fini(&m);
	return 0;
}
