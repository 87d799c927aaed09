/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sample.h"

bool sample_has(size_t row, const char *name, const char *const *always)
{
	const char *text = getenv("LM_SAMPLE");
	unsigned part, parts;
	char end;

	if (!text)
		return true;
	if (sscanf(text, "%u/%u%c", &part, &parts, &end) != 2 || !parts || part >= parts) {
		fprintf(stderr, "LM_SAMPLE is PART/PARTS, such as 0/3, not \"%s\"\n", text);
		exit(1);
	}
	for (; always && *always; always++)
		if (!strcmp(*always, name))
			return true;
	return row % parts == part;
}
