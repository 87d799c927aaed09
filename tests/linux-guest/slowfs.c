// SPDX-License-Identifier: Apache-2.0
/*
 * A file system with one file, "disk", that holds the known pattern and
 * answers each read after a delay.  A guest's disk on it keeps DMA into guest
 * RAM in flight for as long as a test needs it.
 *
 * direct_io: the page cache would answer a second read at once, and O_DIRECT
 * reads go straight into the caller's (the guest's) pages.  Writes are compared
 * with the pattern, and refused where they differ.
 */
#define FUSE_USE_VERSION 312
#include <fuse3/fuse.h>

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "pattern.h"

#define THREADS		64	/* reads in flight; more wait for their turn */
#define NAME		"disk"
#define FILE_PATH	"/" NAME

static struct {
	uint64_t size;
	unsigned int delay_ms;
	uint64_t wrong;		/* this block is served wrong */
	const char *mountpoint;
} conf = { .size = 64ull << 20, .delay_ms = 30, .wrong = UINT64_MAX };

static int fs_getattr(const char *path, struct stat *st,
		      struct fuse_file_info *f)
{
	(void)f;
	memset(st, 0, sizeof(*st));
	if (!strcmp(path, "/")) {
		st->st_mode = S_IFDIR | 0755;
		st->st_nlink = 2;
		return 0;
	}
	if (strcmp(path, FILE_PATH))
		return -ENOENT;
	st->st_mode = S_IFREG | 0600;
	st->st_nlink = 1;
	st->st_size = (off_t)conf.size;
	return 0;
}

static int fs_readdir(const char *path, void *buf, fuse_fill_dir_t fill,
		      off_t at, struct fuse_file_info *f,
		      enum fuse_readdir_flags flags)
{
	(void)path;
	(void)at;
	(void)f;
	(void)flags;
	fill(buf, ".", NULL, 0, 0);
	fill(buf, "..", NULL, 0, 0);
	fill(buf, NAME, NULL, 0, 0);
	return 0;
}

static int fs_open(const char *path, struct fuse_file_info *f)
{
	if (strcmp(path, FILE_PATH))
		return -ENOENT;
	f->direct_io = 1;
	return 0;
}

static void wait_delay(void)
{
	struct timespec t = {
		conf.delay_ms / 1000, conf.delay_ms % 1000 * 1000000l,
	};

	while (nanosleep(&t, &t) && errno == EINTR)
		;
}

/* Part of one block; reads need not be aligned (QEMU probes the file). */
static size_t serve(char *to, uint64_t at, size_t len)
{
	uint64_t words[PATTERN_WORDS], block = at / PATTERN_BLOCK;
	size_t in = at % PATTERN_BLOCK, n = PATTERN_BLOCK - in;

	if (n > len)
		n = len;
	pattern_fill(words, block);
	if (block == conf.wrong)
		words[PATTERN_WORDS / 2] ^= 1;
	memcpy(to, (char *)words + in, n);
	return n;
}

static int fs_read(const char *path, char *buf, size_t len, off_t at,
		   struct fuse_file_info *f)
{
	size_t done = 0;

	(void)path;
	(void)f;
	wait_delay();
	if ((uint64_t)at >= conf.size)
		return 0;
	if (len > conf.size - (uint64_t)at)
		len = conf.size - (uint64_t)at;
	while (done < len)
		done += serve(buf + done, (uint64_t)at + done, len - done);
	return (int)len;
}

/* Nothing is kept: whole blocks must be what the disk holds anyway. */
static int fs_write(const char *path, const char *buf, size_t len, off_t at,
		    struct fuse_file_info *f)
{
	uint64_t words[PATTERN_WORDS];

	(void)path;
	(void)f;
	if (at % PATTERN_BLOCK)
		return (int)len;
	for (size_t n = 0; n + PATTERN_BLOCK <= len; n += PATTERN_BLOCK) {
		uint64_t block = ((uint64_t)at + n) / PATTERN_BLOCK;

		memcpy(words, buf + n, PATTERN_BLOCK);
		if (pattern_ok(words, block))
			continue;
		fprintf(stderr, "slowfs: block %llu was written with something else\n",
			(unsigned long long)block);
		return -EIO;
	}
	return (int)len;
}

static int fs_truncate(const char *path, off_t size, struct fuse_file_info *f)
{
	(void)path;
	(void)size;
	(void)f;
	return 0;
}

static void *fs_init(struct fuse_conn_info *conn, struct fuse_config *cfg)
{
	(void)cfg;
	conn->max_background = THREADS;
	conn->want |= conn->capable & FUSE_CAP_ASYNC_DIO;
	return NULL;
}

static const struct fuse_operations operations = {
	.getattr = fs_getattr,
	.readdir = fs_readdir,
	.open = fs_open,
	.read = fs_read,
	.write = fs_write,
	.truncate = fs_truncate,
	.init = fs_init,
};

static int loop(struct fuse *fuse)
{
	struct fuse_loop_config *c = fuse_loop_cfg_create();
	int ret;

	if (!c)
		return -1;
	fuse_loop_cfg_set_max_threads(c, THREADS);
	fuse_loop_cfg_set_idle_threads(c, THREADS);
	ret = fuse_loop_mt(fuse, c);
	fuse_loop_cfg_destroy(c);
	return ret;
}

/* A signal ends the loop, and the file system is unmounted then. */
static int serve_all(char *program)
{
	char *argv[] = { program, NULL };
	struct fuse_args args = FUSE_ARGS_INIT(1, argv);
	struct fuse *fuse = fuse_new(&args, &operations, sizeof(operations),
				     NULL);
	int ret = -1;

	if (!fuse || fuse_mount(fuse, conf.mountpoint)) {
		fprintf(stderr, "slowfs: cannot mount on %s\n",
			conf.mountpoint);
		return 1;
	}
	if (!fuse_set_signal_handlers(fuse_get_session(fuse))) {
		ret = loop(fuse);
		fuse_remove_signal_handlers(fuse_get_session(fuse));
	}
	fuse_unmount(fuse);
	fuse_destroy(fuse);
	return ret < 0;
}

static bool parse(int argc, char **argv)
{
	static const struct option options[] = {
		{ "size-mib", required_argument, NULL, 's' },
		{ "delay-ms", required_argument, NULL, 'd' },
		{ "wrong-block", required_argument, NULL, 'w' },
		{ 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (c == 's')
			conf.size = strtoull(optarg, NULL, 10) << 20;
		else if (c == 'd')
			conf.delay_ms = (unsigned int)strtoul(optarg, NULL, 10);
		else if (c == 'w')
			conf.wrong = strtoull(optarg, NULL, 10);
		else
			return false;
	}
	conf.mountpoint = argv[optind];
	return optind == argc - 1;
}

int main(int argc, char **argv)
{
	if (!parse(argc, argv)) {
		fprintf(stderr, "usage: slowfs [--size-mib N] [--delay-ms N] "
			"[--wrong-block N] MOUNTPOINT\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	return serve_all(argv[0]);
}
