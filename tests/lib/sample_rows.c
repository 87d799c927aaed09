/* SPDX-License-Identifier: Apache-2.0 */
/* sample_rows N: prints the rows of a matrix of N rows that the sample (LM_SAMPLE) has; row 0 runs always. */
#include <stdio.h>
#include <stdlib.h>
#include "sample.h"

int main(int argc, char **argv)
{
	static const char *const always[] = { "row0", NULL };
	size_t n = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
	char name[32];

	for (size_t i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "row%zu", i);
		if (sample_has(i, name, always))
			puts(name);
	}
	return 0;
}
