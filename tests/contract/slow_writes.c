/* SPDX-License-Identifier: Apache-2.0 */
/* For LD_PRELOAD into a target: a write that begins with 0xaa reaches the disk 30 ms later. */
#include <dlfcn.h>
#include <sys/types.h>
#include <unistd.h>

__attribute__((visibility("default"))) ssize_t pwrite64(int fd, const void *buf, size_t n, off_t at)
{
	static ssize_t (*real)(int, const void *, size_t, off_t);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "pwrite64");
	if (n >= 512 && *(const unsigned char *)buf == 0xaa)
		usleep(30000);
	return real(fd, buf, n, at);
}
