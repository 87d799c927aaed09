/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include "session.h"

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

enum cli_exit cli_session_run(struct cli_settings *settings, cli_session_open_fn *open,
			      struct cli_signals *signals, struct cli_output *out,
			      struct lm_summary *ret)
{
	struct lm_session *session = NULL;
	struct lm_error err = { 0 };

	if (open(&settings->lm, &session, &err))
		return cli_session_refuse(out, &err, ret);
	cli_signals_set_session(signals, session);
	lm_session_run(session, &err); /* its outcome says it better */
	cli_signals_set_session(signals, NULL);
	*ret = *lm_session_summary(session);
	if (ret->outcome != LM_OUTCOME_COMPLETED && !ret->error.code)
		ret->error = err;
	lm_session_free(session);
	cli_output_end(out, ret);
	return cli_exit_code(ret->outcome);
}
