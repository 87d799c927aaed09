/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include "fault.h"
#include "registry.h"

const struct lm_transport_info *lm_transport_find(const char *name)
{
	for (const struct lm_transport_info *const *t = lm_transports; *t; t++)
		if (!strcmp((*t)->name, name))
			return *t;
	return NULL;
}

struct lm_transport *lm_transport_make(const struct lm_transport_info *info)
{
	return lm_transport_fault_from_env(info->make());
}
