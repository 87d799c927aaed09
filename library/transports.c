/* SPDX-License-Identifier: Apache-2.0 */
/* The transports of this build: a new one is a line in the table. */
#include <errno.h>
#include <pthread.h>
#include "engine/tcp/tcp_transport.h"
#include "engine/transport/registry.h"
#include "kvm-glue/qemu.h"
#ifdef LM_HAVE_RDMA
#include "rdma/rdma_transport.h"
#endif

const struct lm_transport_info *const lm_transports[] = {
#ifdef LM_HAVE_RDMA
	&lm_transport_rdma,
#endif
	&lm_transport_tcp,
	NULL,
};

static const char *names[sizeof(lm_transports) / sizeof(lm_transports[0])];

static void fill_names(void)
{
	for (unsigned i = 0; lm_transports[i]; i++)
		names[i] = lm_transports[i]->name;
}

const char *const *lm_transport_names(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, fill_names);
	return names;
}

int lm_check_transport(const char *name, lm_check_fn *fn, void *opaque)
{
	const struct lm_transport_info *info = lm_transport_find(name);

	if (!info)
		return -ENOENT;
	if (info->check)
		info->check(fn, opaque);
	return 0;
}

int lm_check_host(lm_check_fn *fn, void *opaque)
{
	int failures = lm_qemu_check_host(fn, opaque);

	for (unsigned i = 0; lm_transports[i]; i++)
		if (lm_transports[i]->check)
			lm_transports[i]->check(fn, opaque);
	return failures;
}
