/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include "units.h"

#define NS_PER_S INT64_C(1000000000)
#define KIB      UINT64_C(1024)

struct unit {
	const char *name;
	uint64_t mul, div; /* of one: value * mul / div */
};

static const struct unit time_units[] = {
	{ "ns", 1, 1 },
	{ "us", 1000, 1 },
	{ "ms", 1000000, 1 },
	{ "s", NS_PER_S, 1 },
	{ "min", 60 * NS_PER_S, 1 },
	{ "h", 3600 * NS_PER_S, 1 },
	{ NULL, 0, 0 },
};

/* "Mb/s" is not here on purpose: half the world means bits by it, half bytes. */
static const struct unit rate_units[] = {
	{ "KiB/s", KIB, 1 },
	{ "MiB/s", KIB * KIB, 1 },
	{ "GiB/s", KIB * KIB * KIB, 1 },
	{ "kbit/s", 1000, 8 },
	{ "Mbit/s", 1000000, 8 },
	{ "Gbit/s", 1000000000, 8 },
	{ NULL, 0, 0 },
};

/* A decimal number as digits scaled by 10^places; false: not one, or too long. */
static bool decimal(const char **text, uint64_t *ret_digits, uint64_t *ret_scale)
{
	const char *p = *text;
	bool point = false;

	*ret_digits = 0;
	*ret_scale = 1;
	if (*p < '0' || *p > '9')
		return false;
	for (; (*p >= '0' && *p <= '9') || (*p == '.' && !point); p++) {
		if (*p == '.') {
			point = true;
			continue;
		}
		if (*ret_digits > UINT64_C(100000000000000))
			return false;
		*ret_digits = *ret_digits * 10 + (uint64_t)(*p - '0');
		if (point)
			*ret_scale *= 10;
	}
	*text = p;
	return p[-1] != '.';
}

static const struct unit *find_unit(const struct unit *units, const char *name)
{
	while (*name == ' ')
		name++;
	for (; units->name; units++) {
		if (!strcasecmp(units->name, name))
			return units;
	}
	return NULL;
}

/* The value in the base unit; -EINVAL: no number, -ENOENT: no such unit, -ERANGE. */
static int parse(const char *text, const struct unit *units, uint64_t *ret)
{
	const struct unit *unit;
	uint64_t digits, scale;
	unsigned __int128 value;

	if (!decimal(&text, &digits, &scale))
		return -EINVAL;
	unit = find_unit(units, text);
	if (!unit)
		return -ENOENT;
	value = (unsigned __int128)digits * unit->mul / ((unsigned __int128)scale * unit->div);
	if (!value || value > INT64_MAX)
		return -ERANGE;
	*ret = (uint64_t)value;
	return 0;
}

int cli_time_parse(const char *text, int64_t *ret_ns, char *why, size_t why_size)
{
	uint64_t value;
	int rc = parse(text, time_units, &value);

	if (!rc)
		*ret_ns = (int64_t)value;
	else if (rc == -ERANGE)
		snprintf(why, why_size, "'%s' is too short or too long a time", text);
	else if (rc == -ENOENT && !text[strspn(text, "0123456789.")])
		snprintf(why, why_size, "'%s' has no unit; write %sms or %ss", text, text, text);
	else
		snprintf(why, why_size, "'%s' is not a time; write a number and ns, us, ms, s, min or h, "
			 "such as 10ms or 1.5s", text);
	return rc ? -EINVAL : 0;
}

int cli_rate_parse(const char *text, uint64_t *ret_bytes_per_s, char *why, size_t why_size)
{
	int rc = parse(text, rate_units, ret_bytes_per_s);

	if (rc == -ERANGE)
		snprintf(why, why_size, "'%s' is too low or too high a rate", text);
	else if (rc == -ENOENT && !text[strspn(text, "0123456789.")])
		snprintf(why, why_size, "'%s' has no unit; write %sMiB/s or %sMbit/s", text, text, text);
	else if (rc)
		snprintf(why, why_size, "'%s' is not a rate; write a number and KiB/s, MiB/s, GiB/s "
			 "(bytes), Mbit/s or Gbit/s (bits), such as 500MiB/s", text);
	return rc ? -EINVAL : 0;
}

/* In the largest unit that leaves no fraction. */
static void exact(uint64_t value, const struct unit *units, char *buf, size_t size)
{
	const struct unit *best = units;

	for (; units->name; units++) {
		if (units->div == 1 && value % units->mul == 0 && units->mul > best->mul)
			best = units;
	}
	snprintf(buf, size, "%llu%s", (unsigned long long)(value / best->mul), best->name);
}

void cli_time_default(int64_t ns, char *buf, size_t size)
{
	if (ns <= 0 || ns == INT64_MAX)
		snprintf(buf, size, "none");
	else
		exact((uint64_t)ns, time_units, buf, size);
}

void cli_rate_default(uint64_t bytes_per_s, char *buf, size_t size)
{
	if (!bytes_per_s)
		snprintf(buf, size, "none");
	else
		exact(bytes_per_s, rate_units, buf, size);
}

char *cli_time_format(int64_t ns, char *buf, size_t size)
{
	double v = (double)ns;

	if (ns < 0)
		snprintf(buf, size, "?");
	else if (ns < 100000)
		snprintf(buf, size, "%.0f us", v / 1e3);
	else if (ns < NS_PER_S)
		snprintf(buf, size, ns < 10000000 ? "%.2f ms" : "%.1f ms", v / 1e6);
	else if (ns < 120 * NS_PER_S)
		snprintf(buf, size, "%.2f s", v / 1e9);
	else
		snprintf(buf, size, "%lld min %02lld s", (long long)(ns / NS_PER_S / 60),
			 (long long)(ns / NS_PER_S % 60));
	return buf;
}

char *cli_bytes_format(uint64_t bytes, char *buf, size_t size)
{
	static const char *const names[] = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB" };
	double v = (double)bytes;
	unsigned i = 0;

	for (; v >= 1024 && i < 5; i++)
		v /= 1024;
	if (!i)
		snprintf(buf, size, "%llu bytes", (unsigned long long)bytes);
	else
		snprintf(buf, size, v < 10 ? "%.2f %s" : v < 100 ? "%.1f %s" : "%.0f %s", v, names[i]);
	return buf;
}

char *cli_rate_format(uint64_t bytes_per_s, char *buf, size_t size)
{
	cli_bytes_format(bytes_per_s, buf, size);
	snprintf(buf + strlen(buf), size - strlen(buf), "/s");
	return buf;
}
