/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SKIP_H
#define SKIP_H

/* cmocka's skip() gives no reason; tools/check prints this one. */
#define skip_because(why) do {			\
		print_message("skipped: %s\n", why); \
		skip();				\
	} while (0)

#endif
