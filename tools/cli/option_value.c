/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "option_value.h"
#include "units.h"

static int parse_number(const struct cli_option *o, const char *text, void *at, struct lm_error *err)
{
	unsigned long v;
	uint32_t value;
	char *end;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || !v || v > o->max)
		return cli_invalid(err, "--%s: '%s' is not a number from 1 to %u", o->name, text, o->max);
	value = (uint32_t)v;
	memcpy(at, &value, sizeof(value));
	return 0;
}

static int parse_choice(const struct cli_option *o, const char *text, int *at, struct lm_error *err)
{
	char list[128] = "";

	for (int i = 0; o->choices[i]; i++) {
		size_t len = strlen(list);

		if (*text && !strcmp(text, o->choices[i])) {
			*at = i;
			return 0;
		}
		if (*o->choices[i])
			snprintf(list + len, sizeof(list) - len, "%s%s", len ? ", " : "", o->choices[i]);
	}
	return cli_invalid(err, "--%s: '%s' is not one of: %s", o->name, text, list);
}

static int parse_transport(const struct cli_option *o, const char *text, const char **at,
			   struct lm_error *err)
{
	const char *const *names = lm_transport_names();

	*at = text;
	if (!strcmp(text, "auto"))
		return 0;
	for (; *names; names++) {
		if (!strcmp(text, *names))
			return 0;
	}
	return cli_invalid(err, "--%s: no transport '%s' in this build; 'migrate-rdma transports' lists them",
			   o->name, text);
}

static bool is_port(const char *text)
{
	char *end;
	unsigned long v = strtoul(text, &end, 10);

	return *text >= '0' && *text <= '9' && !*end && v <= 65535;
}

/* Shape only: "HOST:PORT" or "[V6]:PORT"; the engine resolves it. */
static int parse_address(const struct cli_option *o, const char *text, const char **at,
			 struct lm_error *err)
{
	const char *colon = strrchr(text, ':'), *bracket = strchr(text, ']');
	bool v6 = *text == '[';

	if (!colon || colon == text || (bracket && colon < bracket))
		return cli_invalid(err, "--%s: '%s' has no port; write ADDRESS:PORT, such as 192.0.2.7:4444 "
				   "or [2001:db8::7]:4444", o->name, text);
	if (!v6 && memchr(text, ':', (size_t)(colon - text)))
		return cli_invalid(err, "--%s: '%s': put an IPv6 address in brackets: [%.*s]:%s", o->name, text,
				   (int)(colon - text), text, colon + 1);
	if (v6 && (!bracket || colon != bracket + 1))
		return cli_invalid(err, "--%s: '%s' is not [ADDRESS]:PORT", o->name, text);
	if (!is_port(colon + 1))
		return cli_invalid(err, "--%s: '%s' is not a port number", o->name, colon + 1);
	*at = text;
	return 0;
}

static int parse_path(const struct cli_option *o, const char *text, const char **at,
		      struct lm_error *err)
{
	if (!*text)
		return cli_invalid(err, "--%s: %s is empty", o->name, o->kind == CLI_PATH ? "the path" : "it");
	*at = text;
	return 0;
}

/* Shape only: "DEVICE[:PORT[:GID]]"; the engine knows which there are. */
static int parse_rail(const struct cli_option *o, const char *text, struct cli_settings *settings,
		      struct lm_error *err)
{
	struct lm_options *lm = &settings->lm;
	size_t len = strcspn(text, ":");

	if (!len || len >= 64 || text[len + strspn(text + len, ":0123456789")])
		return cli_invalid(err, "--%s: '%s' is not DEVICE[:PORT[:GID]], such as mlx5_0:1", o->name, text);
	if (lm->nrails == CLI_RAILS_MAX)
		return cli_invalid(err, "--%s: at most %d of them", o->name, CLI_RAILS_MAX);
	settings->rails[lm->nrails++] = text;
	lm->rails = settings->rails;
	return 0;
}

/* Shape only: "SCHEME:REST"; its backend knows the rest. */
static int parse_lock(const struct cli_option *o, const char *text, struct cli_settings *settings,
		      struct lm_error *err)
{
	const char *const *schemes = lm_lock_schemes();
	struct lm_options *lm = &settings->lm;
	size_t len = strcspn(text, ":");
	char list[128] = "";

	for (; *schemes; schemes++) {
		size_t at = strlen(list);

		if (text[len] && strlen(*schemes) == len && !strncmp(*schemes, text, len))
			break;
		snprintf(list + at, sizeof(list) - at, "%s%s:", at ? ", " : "", *schemes);
	}
	if (!*schemes)
		return cli_invalid(err, "--%s: '%s' is not a lock: it must begin with %s", o->name, text, list);
	for (unsigned i = 0; i < lm->nlocks; i++)
		if (!strcmp(settings->locks[i], text))
			return cli_invalid(err, "--%s: '%s' is given twice", o->name, text);
	if (lm->nlocks == LM_LOCKS_MAX)
		return cli_invalid(err, "--%s: at most %d of them", o->name, LM_LOCKS_MAX);
	settings->locks[lm->nlocks++] = text;
	lm->locks = settings->locks;
	return 0;
}

static int parse_units(const struct cli_option *o, const char *text, void *at, struct lm_error *err)
{
	char why[256];
	int rc;

	if ((o->kind == CLI_TIMEOUT || o->kind == CLI_RATE) && !strcmp(text, "none")) {
		memset(at, 0, sizeof(int64_t));
		return 0;
	}
	if (o->kind == CLI_RATE)
		rc = cli_rate_parse(text, at, why, sizeof(why));
	else
		rc = cli_time_parse(text, at, why, sizeof(why));
	return rc ? cli_invalid(err, "--%s: %s", o->name, why) : 0;
}

static int parse_patience(const struct cli_option *o, const char *text, int64_t *at, struct lm_error *err)
{
	if (strcmp(text, "0") && strcmp(text, "0s"))
		return parse_units(o, text, at, err);
	*at = 0;
	return 0;
}

/* Digits alone are rounds.  An option for rounds and one for a time may be given: the one that is reached first counts. */
static int parse_after(const struct cli_option *o, const char *text, struct lm_options *lm, struct lm_error *err)
{
	char why[256];

	if (*text && !text[strspn(text, "0123456789")])
		return parse_number(o, text, &lm->postcopy_after_rounds, err);
	if (cli_time_parse(text, &lm->postcopy_after_ns, why, sizeof(why)))
		return cli_invalid(err, "--%s: '%s' is neither a number of rounds, such as 3, nor a time, such as 30s",
				   o->name, text);
	return 0;
}

int cli_option_value(const struct cli_option *o, const char *text, struct cli_settings *settings,
		     struct lm_error *err)
{
	void *at = (char *)settings + o->offset;

	switch (o->kind) {
	case CLI_FLAG:
		*(bool *)at = true;
		return 0;
	case CLI_COUNT:
		++*(unsigned *)at;
		return 0;
	case CLI_NUMBER:
		return parse_number(o, text, at, err);
	case CLI_TIME:
	case CLI_TIMEOUT:
	case CLI_RATE:
		return parse_units(o, text, at, err);
	case CLI_TIME_OR_0:
		return parse_patience(o, text, at, err);
	case CLI_AFTER:
		return parse_after(o, text, at, err);
	case CLI_PATH:
	case CLI_WORD:
		return parse_path(o, text, at, err);
	case CLI_ADDRESS:
		return parse_address(o, text, at, err);
	case CLI_CHOICE:
		return parse_choice(o, text, at, err);
	case CLI_TRANSPORT:
		return parse_transport(o, text, at, err);
	case CLI_RAIL:
		return parse_rail(o, text, settings, err);
	case CLI_LOCK:
		return parse_lock(o, text, settings, err);
	}
	return cli_invalid(err, "--%s: of unknown kind", o->name);
}
