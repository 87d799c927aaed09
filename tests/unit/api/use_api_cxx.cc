/* SPDX-License-Identifier: Apache-2.0 */
#include "use_api.c"
