/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include "signals.h"

struct cli_signals {
	pthread_t thread;
	sigset_t old;
	int signal_fd;
	int end_fd;   /* written once: the thread ends */
	int asked_fd; /* written once: somebody wants us to stop */
	pthread_mutex_t lock; /* for all that follows */
	struct cli_output *out;
	struct lm_session *session;
	bool asked;
	bool postcopy_asked;
};

static void raise_fd(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) < 0)
		return; /* it is raised already */
}

/*
 * SIGHUP stays ignored under nohup(1).  SIGINT does not: shells ignore it for commands that a
 * script runs in the background, but a SIGINT that is sent to this process is meant for it.
 */
static void wanted(sigset_t *set)
{
	struct sigaction old;

	sigemptyset(set);
	sigaddset(set, SIGINT);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGTSTP);
	sigaddset(set, SIGUSR1);
	if (!sigaction(SIGHUP, NULL, &old) && old.sa_handler != SIG_IGN)
		sigaddset(set, SIGHUP);
}

/* Ask in any stage: the engine knows when it is too late. */
static void cancel(struct cli_signals *s)
{
	if (s->out)
		cli_output_asked(s->out, CLI_ASK_CANCEL);
	s->asked = true;
	if (s->session)
		lm_session_cancel(s->session);
	raise_fd(s->asked_fd);
}

static void postcopy(struct cli_signals *s)
{
	if (s->out)
		cli_output_asked(s->out, CLI_ASK_POSTCOPY);
	s->postcopy_asked = true;
	if (s->session)
		lm_session_postcopy(s->session);
}

static void suspend(struct cli_signals *s)
{
	if (s->out)
		cli_output_log(s->out, LM_LOG_WARN, "a migration cannot be suspended");
}

static void take(struct cli_signals *s)
{
	struct signalfd_siginfo info;

	if (read(s->signal_fd, &info, sizeof(info)) != sizeof(info))
		return;
	pthread_mutex_lock(&s->lock);
	if (info.ssi_signo == SIGUSR1)
		postcopy(s);
	else if (info.ssi_signo == SIGTSTP)
		suspend(s);
	else
		cancel(s);
	pthread_mutex_unlock(&s->lock);
}

static void *watch(void *arg)
{
	struct cli_signals *s = arg;
	struct pollfd fds[2] = {
		{ .fd = s->signal_fd, .events = POLLIN },
		{ .fd = s->end_fd, .events = POLLIN },
	};

	for (;;) {
		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return NULL;
		if (fds[0].revents)
			take(s);
		if (fds[1].revents)
			return NULL;
	}
}

static int open_fds(struct cli_signals *s, const sigset_t *set)
{
	s->signal_fd = signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK);
	s->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s->asked_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return s->signal_fd < 0 || s->end_fd < 0 || s->asked_fd < 0 ? -errno : 0;
}

static void release(struct cli_signals *s)
{
	const int fds[] = { s->signal_fd, s->end_fd, s->asked_fd };

	for (size_t i = 0; i < 3; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	signal(SIGUSR1, SIG_IGN); /* a late signal must not end the process */
	pthread_sigmask(SIG_SETMASK, &s->old, NULL);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int cli_signals_start(struct cli_signals **ret)
{
	struct cli_signals *s = calloc(1, sizeof(*s));
	sigset_t set;
	int rc;

	if (!s)
		return -ENOMEM;
	signal(SIGPIPE, SIG_IGN);
	pthread_mutex_init(&s->lock, NULL);
	wanted(&set);
	pthread_sigmask(SIG_BLOCK, &set, &s->old);
	rc = open_fds(s, &set);
	if (!rc)
		rc = -pthread_create(&s->thread, NULL, watch, s);
	if (rc) {
		release(s);
		return rc;
	}
	*ret = s;
	return 0;
}

void cli_signals_set_output(struct cli_signals *s, struct cli_output *out)
{
	pthread_mutex_lock(&s->lock);
	s->out = out;
	pthread_mutex_unlock(&s->lock);
}

void cli_signals_set_session(struct cli_signals *s, struct lm_session *session)
{
	pthread_mutex_lock(&s->lock);
	s->session = session;
	if (session && s->postcopy_asked)
		lm_session_postcopy(session);
	if (session && s->asked)
		lm_session_cancel(session);
	pthread_mutex_unlock(&s->lock);
}

int cli_signals_fd(const struct cli_signals *s)
{
	return s->asked_fd;
}

bool cli_signals_asked(struct cli_signals *s)
{
	bool asked;

	pthread_mutex_lock(&s->lock);
	asked = s->asked;
	pthread_mutex_unlock(&s->lock);
	return asked;
}

const sigset_t *cli_signals_old_mask(const struct cli_signals *s)
{
	return &s->old;
}

void cli_signals_stop(struct cli_signals *s)
{
	if (!s)
		return;
	raise_fd(s->end_fd);
	pthread_join(s->thread, NULL);
	release(s);
}
