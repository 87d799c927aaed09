/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over files and the files of folders, without a fuzzer: seeds as ordinary tests. */
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include "fuzz.h"

static unsigned nfiles;

static int run_file(const char *path, const struct stat *st, int type)
{
	size_t size = (size_t)st->st_size;
	uint8_t *data;
	FILE *f;

	if (type != FTW_F)
		return 0;
	f = fopen(path, "rb");
	data = malloc(size ? size : 1); /* of its exact size: a sanitizer sees the end */
	if (!f || !data || fread(data, 1, size, f) != size) {
		fprintf(stderr, "%s: cannot be read\n", path);
		return 1;
	}
	fclose(f);
	LLVMFuzzerTestOneInput(data, size);
	free(data);
	nfiles++;
	return 0;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (ftw(argv[i], run_file, 16)) {
			fprintf(stderr, "%s: failed\n", argv[i]);
			return 1;
		}
	printf("%u inputs\n", nfiles);
	return !nfiles; /* a test without inputs tests nothing */
}
