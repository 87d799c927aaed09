/* SPDX-License-Identifier: Apache-2.0 */
/* What every file here includes: cmocka wants these four before it. */
#ifndef UNIT_TOOLS_H
#define UNIT_TOOLS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#endif
