/* SPDX-License-Identifier: Apache-2.0 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "address.h"

static int bad(struct lm_error *err, const char *address, const char *why)
{
	return lm_err(err, -EINVAL, LM_SCOPE_OPERATION,
		      "bad address \"%.200s\": %s; expected HOST:PORT or [IPV6]:PORT", address, why);
}

static bool port_valid(const char *port)
{
	size_t len = strlen(port);

	return len && len < LM_PORT_MAX && strspn(port, "0123456789") == len && atoi(port) <= 65535;
}

/* Where the host begins and how long it is; *ret_colon is the colon before the port. */
static const char *split(const char *address, const char **ret_host, size_t *ret_len, const char **ret_colon)
{
	const char *end;

	if (*address == '[') {
		end = strchr(address, ']');
		if (!end)
			return "a [ without a ]";
		*ret_host = address + 1;
		*ret_len = (size_t)(end - address - 1);
		*ret_colon = end + 1;
		return end[1] == ':' ? NULL : "no :PORT";
	}
	end = strrchr(address, ':');
	if (!end)
		return "no :PORT";
	*ret_host = address;
	*ret_len = (size_t)(end - address);
	*ret_colon = end;
	return memchr(address, ':', *ret_len) ? "an IPv6 address needs brackets" : NULL;
}

int lm_address_parse(const char *address, char ret_host[static LM_ADDRESS_MAX],
		     char ret_port[static LM_PORT_MAX], struct lm_error *err)
{
	const char *host, *colon, *why;
	size_t len;

	if (!address || !*address)
		return lm_err(err, -EINVAL, LM_SCOPE_OPERATION, "no address given");
	why = split(address, &host, &len, &colon);
	if (why)
		return bad(err, address, why);
	if (!len)
		return bad(err, address, "no host");
	if (len >= LM_ADDRESS_MAX)
		return bad(err, address, "the host is too long");
	if (!port_valid(colon + 1))
		return bad(err, address, "the port is not a number from 0 to 65535");
	memcpy(ret_host, host, len);
	ret_host[len] = 0;
	strcpy(ret_port, colon + 1);
	return 0;
}

int lm_address_resolve(const char *address, bool passive, struct addrinfo **ret, struct lm_error *err)
{
	struct addrinfo hints = {
		.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM,
		.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
	};
	char host[LM_ADDRESS_MAX], port[LM_PORT_MAX];
	int r = lm_address_parse(address, host, port, err);

	if (r)
		return r;
	r = getaddrinfo(host, port, &hints, ret);
	if (r == EAI_SYSTEM)
		return lm_err_errno(err, -errno, LM_SCOPE_OPERATION, "cannot look up \"%.200s\"", host);
	if (r)
		return lm_err(err, r == EAI_AGAIN ? -EAGAIN : -EADDRNOTAVAIL, LM_SCOPE_OPERATION,
			      "cannot look up \"%.200s\": %s", host, gai_strerror(r));
	return 0;
}

void lm_address_format(const struct sockaddr *addr, char ret[static LM_ADDRESS_MAX])
{
	socklen_t len = addr->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	char host[LM_ADDRESS_MAX - 10], port[LM_PORT_MAX];

	if ((addr->sa_family != AF_INET && addr->sa_family != AF_INET6) ||
	    getnameinfo(addr, len, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(ret, LM_ADDRESS_MAX, "local");
	else
		snprintf(ret, LM_ADDRESS_MAX, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
}

bool lm_address_is_loopback(const struct sockaddr *addr)
{
	const struct in6_addr *v6;

	switch (addr->sa_family) {
	case AF_INET:
		return ntohl(((const struct sockaddr_in *)addr)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
	case AF_INET6:
		v6 = &((const struct sockaddr_in6 *)addr)->sin6_addr;
		return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == IN_LOOPBACKNET);
	case AF_UNIX:
		return true;
	default:
		return false;
	}
}

int lm_address_allowed(const struct sockaddr *addr, bool insecure, const char *doing, struct lm_error *err)
{
	char text[LM_ADDRESS_MAX];

	if (insecure || lm_address_is_loopback(addr))
		return 0;
	lm_address_format(addr, text);
	return lm_err(err, -EACCES, LM_SCOPE_OPERATION,
		      "refusing to %s %s, which is not loopback: without TLS everyone on the path can read and "
		      "change the guest's memory; --insecure allows it, for a network that is yours alone",
		      doing, text);
}
