/* SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "fakeverbs.h"

bool (*fake_idle)(void);
uint64_t fake_memlock;

static pthread_t test_thread;
static _Atomic int64_t skipped_ns;

void fake_broken(const char *what, const char *file, int line)
{
	fprintf(stderr, "%s:%d: the code under test broke this: %s\n", file, line, what);
	abort();
}

/* ---- time ---- */

int __real_clock_gettime(clockid_t id, struct timespec *t);
int __wrap_clock_gettime(clockid_t id, struct timespec *t);
int __wrap_clock_gettime(clockid_t id, struct timespec *t)
{
	int r = __real_clock_gettime(id, t);
	int64_t ns = t->tv_sec * INT64_C(1000000000) + t->tv_nsec + atomic_load(&skipped_ns);

	t->tv_sec = ns / 1000000000;
	t->tv_nsec = ns % 1000000000;
	return r;
}

int __real_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t n, int timeout_ms)
{
	int r;

	if (!pthread_equal(pthread_self(), test_thread))
		return __real_poll(fds, n, timeout_ms);
	r = __real_poll(fds, n, 0);
	while (!r && timeout_ms && fake_idle && fake_idle())
		r = __real_poll(fds, n, 0);
	fake_must(r || timeout_ms >= 0); /* or it waits for ever */
	if (!r)
		atomic_fetch_add(&skipped_ns, timeout_ms * INT64_C(1000000));
	return r;
}

/* ---- interfaces ---- */

struct interface {
	struct ifaddrs ifaddrs; /* first */
	struct sockaddr_in address, mask;
};

struct sockaddr_in fake_address(uint32_t net, uint32_t host)
{
	return (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(0xc0a80000 | net << 8 | host) };
}

uint32_t fake_net_of(const struct sockaddr *a)
{
	uint32_t ip = ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr);

	return a->sa_family == AF_INET && ip >> 16 == 0xc0a8 ? ip >> 8 & 255 : FAKE_GONE;
}

/* One per network, and one that has no RDMA device. */
int __wrap_getifaddrs(struct ifaddrs **ret);
int __wrap_getifaddrs(struct ifaddrs **ret)
{
	struct interface *all = fake_make("getifaddrs", (FAKE_DEVICES + 1) * sizeof(*all));

	for (unsigned i = 0; all && i <= fake_ndevices; i++) {
		all[i].address = fake_address(i < fake_ndevices ? i : 255, 1);
		all[i].mask = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(0xffffff00) };
		all[i].ifaddrs = (struct ifaddrs){
			.ifa_next = i < fake_ndevices ? &all[i + 1].ifaddrs : NULL, .ifa_flags = IFF_UP,
			.ifa_addr = (struct sockaddr *)&all[i].address, .ifa_netmask = (struct sockaddr *)&all[i].mask,
		};
	}
	*ret = all ? &all->ifaddrs : NULL;
	return all ? 0 : -1;
}

void __wrap_freeifaddrs(struct ifaddrs *all);
void __wrap_freeifaddrs(struct ifaddrs *all)
{
	fake_drop("freeifaddrs", all);
}

unsigned fake_nfds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

uint64_t __wrap_lm_memlock_limit(void);
uint64_t __wrap_lm_memlock_limit(void)
{
	return fake_memlock;
}

void fake_host_reset(void)
{
	fake_memlock = UINT64_MAX;
	fake_idle = NULL;
	test_thread = pthread_self();
}
