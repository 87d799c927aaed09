/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: NAME=VALUE words; the loader puts the file name first. */
#include <stddef.h>
#include "guest.h"

/* What follows NAME= if the word at s starts with it, else NULL. */
static const char *value_of(const char *s, const char *name)
{
	while (*name && *s == *name) {
		s++;
		name++;
	}
	return !*name && *s == '=' ? s + 1 : NULL;
}

static bool word_is(const char *s, const char *word)
{
	while (*word && *s == *word) {
		s++;
		word++;
	}
	return !*word && (!*s || *s == ' ');
}

static bool number(const char *s, uint64_t *value)
{
	uint64_t v = 0;

	if (*s < '0' || *s > '9')
		return false;
	for (; *s >= '0' && *s <= '9'; s++)
		v = v * 10 + (uint64_t)(*s - '0');
	*value = v;
	return !*s || *s == ' ';
}

static bool rate(const char *s, uint64_t *value)
{
	if (word_is(s, "max") || word_is(s, "-1")) {
		*value = GUEST_RATE_MAX;
		return true;
	}
	return number(s, value);
}

/* The index of the word among a NULL-ended list, or -1. */
static int choice(const char *s, const char *const *words)
{
	for (int i = 0; words[i]; i++) {
		if (word_is(s, words[i]))
			return i;
	}
	return -1;
}

static bool set_pattern(struct options *o, const char *v)
{
	static const char *const words[] = { "random", "seq", "hot", NULL };
	int i = choice(v, words);

	if (i >= 0)
		o->pattern = (enum pattern)i;
	return i >= 0;
}

static bool set_fill(struct options *o, const char *v)
{
	static const char *const words[] = { "all", "none", "half", NULL };
	int i = choice(v, words);

	if (i >= 0)
		o->fill = (enum fill)i;
	return i >= 0;
}

static bool set_verify(struct options *o, const char *v)
{
	uint64_t n;

	if (!number(v, &n) || n > 1)
		return false;
	o->verify = n;
	return true;
}

static bool option(struct options *o, const char *s)
{
	const char *v;

	v = value_of(s, "mb");
	if (v)
		return number(v, &o->mb);
	v = value_of(s, "start");
	if (v)
		return number(v, &o->start_mb);
	v = value_of(s, "rate");
	if (v)
		return rate(v, &o->rate);
	v = value_of(s, "pattern");
	if (v)
		return set_pattern(o, v);
	v = value_of(s, "fill");
	if (v)
		return set_fill(o, v);
	v = value_of(s, "cpus");
	if (v)
		return number(v, &o->cpus) && o->cpus && o->cpus <= CPUS_MAX;
	v = value_of(s, "verify");
	return v && set_verify(o, v);
}

static const char *skip_word(const char *s)
{
	while (*s && *s != ' ')
		s++;
	while (*s == ' ')
		s++;
	return s;
}

const char *options_parse(struct options *o, const char *line)
{
	*o = (struct options) {
		.start_mb = 16,
		.rate = 1000,
		.verify = true,
		.cpus = 1,
	};
	if (!line)
		return NULL;
	for (const char *s = skip_word(line); *s; s = skip_word(s)) {
		if (!option(o, s))
			return s;
	}
	return NULL;
}
