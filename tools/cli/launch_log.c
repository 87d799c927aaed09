/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "launch_log.h"

#define LOOK_EVERY_MS 200

struct cli_launch_log {
	pthread_t thread;
	int file, end_fd;
	struct cli_output *out;
	char line[900]; /* of a line that is not complete yet */
	size_t len;
};

static void show(struct cli_launch_log *l)
{
	l->line[l->len] = 0;
	if (l->len)
		cli_output_qemu_says(l->out, l->line);
	l->len = 0;
}

static void add(struct cli_launch_log *l, char c)
{
	if (c == '\n' || l->len == sizeof(l->line) - 1)
		show(l);
	if (c != '\n' && c)
		l->line[l->len++] = c;
}

/* The file only grows, and its offset is where we have read to. */
static void read_on(struct cli_launch_log *l)
{
	char buf[1024];
	ssize_t n;

	while ((n = read(l->file, buf, sizeof(buf))) > 0) {
		for (ssize_t i = 0; i < n; i++)
			add(l, buf[i]);
	}
}

static void *relay(void *arg)
{
	struct cli_launch_log *l = arg;
	struct pollfd end = { .fd = l->end_fd, .events = POLLIN };
	int rc;

	do {
		rc = poll(&end, 1, LOOK_EVERY_MS);
		read_on(l);
	} while (rc == 0 || (rc < 0 && errno == EINTR));
	show(l);
	return NULL;
}

static void release(struct cli_launch_log *l)
{
	if (l->file >= 0)
		close(l->file);
	if (l->end_fd >= 0)
		close(l->end_fd);
	free(l);
}

int cli_launch_log_start(const char *path, struct cli_output *out, struct cli_launch_log **ret)
{
	struct cli_launch_log *l = calloc(1, sizeof(*l));
	int rc;

	if (!l)
		return -ENOMEM;
	l->out = out;
	l->end_fd = eventfd(0, EFD_CLOEXEC);
	l->file = open(path, O_RDONLY | O_CLOEXEC);
	rc = l->end_fd < 0 || l->file < 0 ? -errno : -pthread_create(&l->thread, NULL, relay, l);
	if (rc) {
		release(l);
		return rc;
	}
	*ret = l;
	return 0;
}

void cli_launch_log_stop(struct cli_launch_log *l)
{
	uint64_t one = 1;

	if (!l)
		return;
	if (write(l->end_fd, &one, sizeof(one)) == sizeof(one))
		pthread_join(l->thread, NULL);
	release(l);
}
