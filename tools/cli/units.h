/* SPDX-License-Identifier: Apache-2.0 */
/* Times, rates and sizes: read from a command line, shown to a person. */
#ifndef CLI_UNITS_H
#define CLI_UNITS_H

#include <stddef.h>
#include <stdint.h>

/*
 * "10ms", "1.5s", "500us"; rates "200MiB/s", "2.5Gbit/s".  Return 0, or -EINVAL
 * with the reason and what to write in why.  No locale, no rounding surprises.
 */
int cli_time_parse(const char *text, int64_t *ret_ns, char *why, size_t why_size);
int cli_rate_parse(const char *text, uint64_t *ret_bytes_per_s, char *why, size_t why_size);

/* For --help, in the form that the parser reads back; 0 is "none". */
void cli_time_default(int64_t ns, char *buf, size_t size);
void cli_rate_default(uint64_t bytes_per_s, char *buf, size_t size);

/* For people: "11.2 ms", "1.02 GiB", "3.4 GiB/s". Return buf. */
char *cli_time_format(int64_t ns, char *buf, size_t size);
char *cli_bytes_format(uint64_t bytes, char *buf, size_t size);
char *cli_rate_format(uint64_t bytes_per_s, char *buf, size_t size);

#endif
