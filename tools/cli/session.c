/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>
#include "running.h"
#include "session.h"

enum cli_exit cli_session_frame(const struct cli_subcommand *self, struct cli_settings *settings,
				enum cli_side side, cli_session_body_fn *body)
{
	struct cli_signals *signals = NULL;
	struct cli_output *out = NULL;
	int rc = cli_signals_start(&signals);

	if (!rc)
		rc = cli_output_open(settings, side, &out);
	if (rc) {
		fprintf(stderr, "migrate-rdma %s: %s\n", self->name, strerror(-rc));
		cli_signals_stop(signals);
		return CLI_EXIT_REFUSED;
	}
	cli_signals_set_output(signals, out);
	rc = body(settings, signals, out);
	cli_signals_stop(signals);
	cli_output_close(out);
	return rc;
}

/* The migration does not depend on it. */
static struct cli_running *announce(const struct cli_settings *settings, const struct lm_session *session,
				    struct cli_output *out)
{
	struct cli_running *running = NULL;
	int rc = cli_running_add(lm_session_pid(session), settings->lm.qmp,
				 settings->lm.postcopy != LM_POSTCOPY_NEVER, &running);

	if (rc)
		cli_output_log(out, LM_LOG_INFO, "'migrate-rdma postcopy' will not find this process (%s); "
			       "SIGUSR1 does the same", strerror(-rc));
	return running;
}

enum cli_exit cli_session_refuse(struct cli_output *out, const struct lm_error *err,
				 struct lm_summary *ret)
{
	*ret = (struct lm_summary){
		.outcome = err->code == -ECANCELED ? LM_OUTCOME_CANCELLED : LM_OUTCOME_REFUSED,
		.error = *err,
	};
	cli_output_end(out, ret);
	return cli_exit_code(ret->outcome);
}

enum cli_exit cli_session_run(struct cli_settings *settings, cli_session_open_fn *open, bool findable,
			      struct cli_signals *signals, struct cli_output *out,
			      struct lm_summary *ret)
{
	struct cli_running *running = NULL;
	struct lm_session *session = NULL;
	struct lm_error err = { 0 };

	if (open(&settings->lm, &session, &err))
		return cli_session_refuse(out, &err, ret);
	cli_signals_set_session(signals, session);
	if (findable)
		running = announce(settings, session, out);
	lm_session_run(session, &err); /* its outcome says it better */
	cli_running_remove(running);
	cli_signals_set_session(signals, NULL);
	*ret = *lm_session_summary(session);
	if (ret->outcome != LM_OUTCOME_COMPLETED && !ret->error.code)
		ret->error = err;
	lm_session_free(session);
	cli_output_end(out, ret);
	return cli_exit_code(ret->outcome);
}
