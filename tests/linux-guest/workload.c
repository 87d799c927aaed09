// SPDX-License-Identifier: Apache-2.0
/*
 * The Linux guest's workload: NAME=VALUE arguments, commands on the console.
 * It is process 1 and never ends.
 */
#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define LINE 256

void say(const char *format, ...)
{
	char line[LINE];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	if (n > LINE - 2)
		n = LINE - 2;
	line[n++] = '\n';
	if (write(STDOUT_FILENO, line, (size_t)n) < 0)
		return;	/* nowhere to say it */
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Huge pages would make one transfer of what should be many small ones. */
void *get_memory(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED) {
		say("FAILED no memory: %s", strerror(errno));
		exit(1);
	}
	madvise(p, bytes, MADV_NOHUGEPAGE);
	return p;
}

/* The kernel has free memory then that holds something. */
static void use_once(uint64_t bytes)
{
	void *p = get_memory(bytes);

	memset(p, 0xa5, bytes);
	munmap(p, bytes);
}

static bool take(const char *arg, const char *name, uint64_t *value)
{
	size_t n = strlen(name);

	if (strncmp(arg, name, n) || arg[n] != '=')
		return false;
	*value = strtoull(arg + n + 1, NULL, 10);
	return true;
}

static bool option(struct config *c, const char *arg)
{
	if (!strncmp(arg, "disk=", 5)) {
		c->disk = arg + 5;
		return true;
	}
	return take(arg, "mb", &c->mb) || take(arg, "rate", &c->rate) ||
	       take(arg, "used", &c->used_mb) ||
	       take(arg, "reads", &c->reads) || take(arg, "pages", &c->pages) ||
	       take(arg, "pool", &c->pool_mb) ||
	       take(arg, "pause", &c->pause_ms) ||
	       take(arg, "writes", &c->writes) ||
	       take(arg, "threads", &c->threads) ||
	       take(arg, "storm", &c->storm_mb);
}

/* No echo, or the log would show commands as if the guest had said them. */
static void quiet_console(void)
{
	struct termios t;

	if (tcgetattr(STDIN_FILENO, &t))
		return;
	t.c_lflag &= ~(tcflag_t)ECHO;
	tcsetattr(STDIN_FILENO, TCSANOW, &t);
}

static void obey(const char *line)
{
	if (!strcmp(line, "check\n"))
		hole_check();
	else if (!strcmp(line, "report\n"))
		hole_report();
	else if (!strcmp(line, "writes\n"))
		write_report();
	else
		say("UNKNOWN command, there are: check report writes");
}

int main(int argc, char **argv)
{
	struct config c = {
		.mb = 32, .rate = 500, .pages = 8, .pool_mb = 32,
		.storm_mb = 32, .disk = "/dev/nvme0n1",
	};
	char line[LINE];

	for (int i = 1; i < argc; i++) {
		if (!option(&c, argv[i]))
			say("IGNORED option %s", argv[i]);
	}
	quiet_console();
	if (c.used_mb)
		use_once(c.used_mb << 20);
	if (c.mb)
		dirty_start(&c);
	if (c.reads)
		hole_start(&c);
	if (c.writes)
		write_start(&c);
	if (c.threads)
		storm_start(&c);
	say("READY mb=%llu reads=%llu", (unsigned long long)c.mb,
	    (unsigned long long)c.reads);
	for (;;) {
		if (fgets(line, sizeof(line), stdin))
			obey(line);
		else
			sleep(1);
	}
}
