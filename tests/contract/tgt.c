/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tgt.h"

#define IQN "iqn.2025-01.test.migrate-rdma:luns"
#define LUN_BYTES (1 << 20)

static char dir[] = "/tmp/lock-tgt.XXXXXX"; /* short: a Unix socket lies in it */
static bool have_dir;
static pid_t pid;
static unsigned port, luns;
static char preload[512], file[256];

/* A command with its output in the log; its exit status, 1 if it hung. */
static int run(const char *fmt, ...)
{
	char command[1024], all[1300];
	va_list ap;
	int status;

	va_start(ap, fmt);
	vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	snprintf(all, sizeof(all), "TGT_IPC_SOCKET=%s/ipc timeout 5 %s >>%s/log 2>&1 </dev/null", dir, command, dir);
	status = system(all);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* Free at both addresses, for the moment. */
static bool port_choose(void)
{
	for (unsigned i = 0; i < 50; i++) {
		struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
		socklen_t len = sizeof(a);
		int one = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), two = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		bool good = !bind(one, (struct sockaddr *)&a, len) && !getsockname(one, (struct sockaddr *)&a, &len);

		port = ntohs(a.sin_port);
		a.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1);
		good = good && !bind(two, (struct sockaddr *)&a, len);
		close(one);
		close(two);
		if (good)
			return true;
	}
	return false;
}

static void spawn(void)
{
	char portals[128], log[64], socket[64];

	snprintf(portals, sizeof(portals), "portal=127.0.0.1:%u,portal=127.0.0.2:%u", port, port);
	snprintf(log, sizeof(log), "%s/tgtd.log", dir);
	snprintf(socket, sizeof(socket), "%s/ipc", dir);
	pid = fork();
	if (pid)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int fd = open(log, O_CREAT | O_WRONLY | O_APPEND, 0600);

	dup2(fd, 1);
	dup2(fd, 2);
	setenv("TGT_IPC_SOCKET", socket, 1);
	if (*preload)
		setenv("LD_PRELOAD", preload, 1);
	execlp("tgtd", "tgtd", "-f", "-C", "7", "--iscsi", portals, NULL);
	_exit(127);
}

static bool running(void)
{
	for (unsigned i = 0; i < 300; i++) {
		if (!run("tgtadm -C 7 --mode system --op show"))
			return true;
		if (waitpid(pid, NULL, WNOHANG) == pid) {
			pid = 0;
			return false;
		}
		usleep(10000);
	}
	return false;
}

/* It listens elsewhere, and says nothing, when a portal is taken. */
static bool listens(void)
{
	return !run("sh -c \"tgtadm -C 7 --lld iscsi --mode portal --op show | grep -q 127.0.0.1:%u\"", port) &&
	       !run("sh -c \"tgtadm -C 7 --lld iscsi --mode portal --op show | grep -q 127.0.0.2:%u\"", port);
}

static bool lun_make(unsigned lun)
{
	snprintf(file, sizeof(file), "%s/%u.lun", dir, lun);
	return !run("truncate -s %d %s", LUN_BYTES, file) &&
	       !run("tgtadm -C 7 --lld iscsi --mode logicalunit --op new --tid 1 --lun %u --bstype rdwr --backing-store %s",
		    lun, file);
}

static bool configure(void)
{
	if (run("tgtadm -C 7 --lld iscsi --mode target --op new --tid 1 --targetname " IQN))
		return false;
	for (unsigned i = 1; i <= luns; i++)
		if (!lun_make(i))
			return false;
	return !run("tgtadm -C 7 --lld iscsi --mode target --op bind --tid 1 -I ALL");
}

bool tgt_start(const char *library, char *why, size_t size)
{
	snprintf(preload, sizeof(preload), "%s", library ? library : "");
	if (!mkdtemp(dir)) {
		snprintf(why, size, "no directory in /tmp");
		return false;
	}
	have_dir = true;
	if (geteuid() || run("sh -c 'command -v tgtd && command -v tgtadm'")) {
		snprintf(why, size, "needs root and tgtd (package tgt)");
		return false;
	}
	for (unsigned i = 0; i < 5 && port_choose(); i++) {
		spawn();
		if (running() && listens() && configure())
			return true;
		tgt_kill();
	}
	snprintf(why, size, "tgtd does not start; see %s/log", dir);
	return false;
}

void tgt_lun(char *uri, size_t size)
{
	if (!lun_make(++luns))
		abort();
	snprintf(uri, size, "scsi-pr:iscsi://127.0.0.1:%u,127.0.0.2:%u/" IQN "/%u", port, port, luns);
}

void tgt_kill(void)
{
	if (pid > 0) {
		kill(pid, SIGKILL); /* it ignores SIGTERM */
		waitpid(pid, NULL, 0);
	}
	pid = 0;
}

bool tgt_again(void)
{
	spawn();
	return running() && listens() && configure();
}

void tgt_pause(bool on)
{
	kill(pid, on ? SIGSTOP : SIGCONT);
}

void tgt_portal(unsigned portal, bool on)
{
	run("tgtadm -C 7 --lld iscsi --mode portal --op %s --param portal=127.0.0.%u:%u", on ? "new" : "delete",
	    portal + 1, port);
}

bool tgt_redirect(void)
{
	static const char update[] = "tgtadm -C 7 --lld iscsi --mode target --op update --tid 1 --name";

	return !run("%s RedirectAddress --value 127.0.0.1", update) && !run("%s RedirectPort --value %u", update, port) &&
	       !run("%s RedirectReason --value Temporary", update);
}

const char *tgt_file(void)
{
	return file;
}

void tgt_stop(void)
{
	char command[64];

	tgt_kill();
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	if (have_dir && system(command))
		fprintf(stderr, "%s stays\n", dir);
}
