/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading and making the small JSON objects of QMP with json-c.  The readers take
 * NULL and objects of the wrong type: what comes from the socket is not trusted.
 */
#ifndef LM_JS_H
#define LM_JS_H

#include <json-c/json.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

/* Borrowed member, NULL when it is missing. */
static inline struct json_object *lm_js_get(struct json_object *o, const char *key)
{
	struct json_object *v = NULL;

	if (!o || !json_object_is_type(o, json_type_object))
		return NULL;
	return json_object_object_get_ex(o, key, &v) ? v : NULL;
}

/* Borrowed string, NULL when the member is missing or not a string. */
static inline const char *lm_js_str(struct json_object *o, const char *key)
{
	struct json_object *v = lm_js_get(o, key);

	return v && json_object_is_type(v, json_type_string) ? json_object_get_string(v) : NULL;
}

/* As above with "" for what is missing. */
static inline const char *lm_js_text(struct json_object *o, const char *key)
{
	const char *s = lm_js_str(o, key);

	return s ? s : "";
}

static inline int64_t lm_js_int(struct json_object *o, const char *key, int64_t missing)
{
	struct json_object *v = lm_js_get(o, key);

	return v && json_object_is_type(v, json_type_int) ? json_object_get_int64(v) : missing;
}

static inline bool lm_js_true(struct json_object *o, const char *key)
{
	struct json_object *v = lm_js_get(o, key);

	return v && json_object_is_type(v, json_type_boolean) && json_object_get_boolean(v);
}

/* Length of an array, 0 when it is none. */
static inline size_t lm_js_len(struct json_object *a)
{
	return a && json_object_is_type(a, json_type_array) ? json_object_array_length(a) : 0;
}

static inline struct json_object *lm_js_at(struct json_object *a, size_t i)
{
	return json_object_array_get_idx(a, i);
}

/* New object of strings: lm_js_strings("path", p, "property", "type", NULL). */
__attribute__((sentinel)) static inline struct json_object *lm_js_strings(const char *key, ...)
{
	struct json_object *o = json_object_new_object();
	va_list ap;

	va_start(ap, key);
	for (; key; key = va_arg(ap, const char *))
		json_object_object_add(o, key, json_object_new_string(va_arg(ap, const char *)));
	va_end(ap);
	return o;
}

static inline void lm_js_put(struct json_object **o)
{
	if (*o)
		json_object_put(*o);
	*o = NULL;
}

#define LM_AUTO_JS __attribute__((cleanup(lm_js_put)))

#endif
