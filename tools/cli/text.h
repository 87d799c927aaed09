/* SPDX-License-Identifier: Apache-2.0 */
/* Text from elsewhere (the peer, QEMU, paths) made safe for a terminal and for JSON. */
#ifndef CLI_TEXT_H
#define CLI_TEXT_H

#include <stddef.h>

/*
 * Copy, with control characters (a terminal would obey them) and what is not
 * UTF-8 replaced by '?', and white space by a blank.  Always ends in 0; never
 * cuts a character in two.  Returns out.
 */
char *cli_text_clean(const char *in, char *out, size_t size);

#endif
