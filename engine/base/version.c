/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/migrate_rdma.h"

#ifndef LM_VERSION
#define LM_VERSION "0.1.0"
#endif

const char *lm_version(void)
{
	return "migrate-rdma " LM_VERSION;
}
