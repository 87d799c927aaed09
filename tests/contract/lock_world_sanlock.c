/* SPDX-License-Identifier: Apache-2.0 */
/* Three sanlock daemons on one machine, each a host of the lockspace, without privileges or watchdog. */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
/* These do not include what they need. */
#include <sanlock.h>
#include <sanlock_admin.h>
#include "lock_contract.h"

#define LEASES 64
#define LEASE_BYTES (1 << 20)
#define IO_TIMEOUT 1

static char dir[] = "/tmp/lock-sanlock.XXXXXX"; /* short: Unix sockets lie in it */
static bool have_dir;
static pid_t daemons[NHOSTS];
static unsigned number;

static void sanlock_enter(unsigned host)
{
	char run[64];

	snprintf(run, sizeof(run), "%s/%u", dir, host);
	setenv("SANLOCK_RUN_DIR", run, 1);
	setenv("SANLOCK_PRIVILEGED", "0", 1);
}

static bool file_make(const char *name)
{
	char path[96];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)LEASES * LEASE_BYTES))
		return false;
	close(fd);
	return true;
}

static void daemon_start(unsigned host)
{
	char name[16], log[96];
	int fd;

	snprintf(log, sizeof(log), "%s/%u", dir, host);
	mkdir(log, 0700);
	daemons[host] = fork();
	if (daemons[host])
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sanlock_enter(host);
	snprintf(log, sizeof(log), "%s/%u/log", dir, host);
	fd = open(log, O_CREAT | O_WRONLY | O_APPEND, 0600);
	dup2(fd, 1);
	dup2(fd, 2);
	snprintf(name, sizeof(name), "host%u", host);
	execlp("sanlock", "sanlock", "daemon", "-D", "-w", "0", "-h", "0", "-U", "root", "-G", "root", "-e", name, NULL);
	_exit(127);
}

static void lockspace_fill(unsigned host, struct sanlk_lockspace *ret)
{
	memset(ret, 0, sizeof(*ret));
	strcpy(ret->name, "lmtest");
	ret->host_id = host + 1;
	snprintf(ret->host_id_disk.path, sizeof(ret->host_id_disk.path), "%s/lockspace", dir);
}

static bool answers(void)
{
	uint32_t version, proto;

	for (unsigned i = 0; i < 200; i++) {
		if (sanlock_version(0, &version, &proto) >= 0)
			return true;
		usleep(10000);
	}
	return false;
}

/* In a process of each host: joining takes seconds. */
static bool all_join(void)
{
	pid_t pids[NHOSTS];
	bool good = true;
	int status;

	for (unsigned i = 0; i < NHOSTS; i++) {
		pids[i] = fork();
		if (!pids[i]) {
			struct sanlk_lockspace ls;

			sanlock_enter(i);
			lockspace_fill(i, &ls);
			_exit(!answers() || sanlock_add_lockspace_timeout(&ls, 0, IO_TIMEOUT) < 0);
		}
	}
	for (unsigned i = 0; i < NHOSTS; i++)
		good = waitpid(pids[i], &status, 0) == pids[i] && !status && good;
	return good;
}

/* The library remembers whose daemon it talked to first: so never in the test's own process. */
static bool as_host_0(bool (*what)(void))
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		sanlock_enter(0);
		_exit(!what());
	}
	return waitpid(pid, &status, 0) == pid && !status;
}

static bool lockspace_make(void)
{
	struct sanlk_lockspace ls;

	lockspace_fill(0, &ls);
	return answers() && sanlock_write_lockspace(&ls, 0, 0, IO_TIMEOUT) >= 0;
}

static bool sanlock_start(char *why, size_t size)
{
	snprintf(why, size, "needs root and sanlock (package sanlock)");
	if (!mkdtemp(dir))
		return false;
	have_dir = true;
	if (geteuid() || system("command -v sanlock >/dev/null 2>&1"))
		return false;
	if (!file_make("lockspace") || !file_make("leases"))
		return false;
	for (unsigned i = 0; i < NHOSTS; i++)
		daemon_start(i);
	snprintf(why, size, "sanlock's daemons do not come up; see %s/*/log", dir);
	return as_host_0(lockspace_make) && all_join();
}

static void sanlock_stop(void)
{
	char command[64];

	for (unsigned i = 0; i < NHOSTS; i++) {
		if (daemons[i] <= 0)
			continue;
		kill(daemons[i], SIGKILL);
		waitpid(daemons[i], NULL, 0);
	}
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	if (have_dir && system(command))
		fprintf(stderr, "%s stays\n", dir);
}

static bool lease_make(void)
{
	union {
		struct sanlk_resource r;
		uint8_t room[sizeof(struct sanlk_resource) + sizeof(struct sanlk_disk)];
	} q = { 0 };
	struct sanlk_disk disk = { .offset = (uint64_t)(number % LEASES) * LEASE_BYTES };

	snprintf(disk.path, sizeof(disk.path), "%s/leases", dir);
	strcpy(q.r.lockspace_name, "lmtest");
	snprintf(q.r.name, sizeof(q.r.name), "vm%u", number);
	q.r.num_disks = 1;
	memcpy(q.room + sizeof(q.r), &disk, sizeof(disk));
	return sanlock_write_resource(&q.r, 0, 0, 0) >= 0;
}

static void sanlock_fresh(char uri[LM_LOCK_URI_MAX])
{
	number++;
	if (!as_host_0(lease_make))
		abort();
	snprintf(uri, LM_LOCK_URI_MAX, "sanlock:lmtest:vm%u:%s/leases:%u", number, dir, number % LEASES * LEASE_BYTES);
}

const struct world sanlock_world = {
	.name = "sanlock", .start = sanlock_start, .stop = sanlock_stop, .fresh = sanlock_fresh, .enter = sanlock_enter,
	.names_next = true, .sees_hosts = true, .rule = "lock-version",
};
