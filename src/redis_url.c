/*
 * redis_url.c
 *		Parse redis://[user[:password]@]host[:port][/db] and
 *		unix://[user:password@]/path/to/socket[?db=n].
 *
 * The forms are those of the IANA registration of redis:// and of the common clients.  rediss://
 * (TLS) is refused in words: it needs hiredis's ssl library, which no build uses.
 */
#include "redis_url.h"

#include <ctype.h>

#define DEFAULT_PORT 6379

static bool fail(char *why, size_t why_len, const char *fmt, ...) pg_attribute_printf(3, 4);

static bool
fail(char *why, size_t why_len, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, why_len, fmt, args);
	va_end(args);
	return false;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char) tolower((unsigned char) c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Copies src..end to dst, %XX decoded; false when it does not fit or is not well formed. */
static bool
decode(const char *src, const char *end, char *dst, size_t size)
{
	size_t n = 0;

	for (; src < end; src++)
	{
		char c = *src;

		if (c == '%')
		{
			if (end - src < 3 || hex_digit(src[1]) < 0 || hex_digit(src[2]) < 0)
				return false;
			c = (char) (hex_digit(src[1]) * 16 + hex_digit(src[2]));
			src += 2;
		}
		if (c == '\0' || n + 1 >= size)
			return false;
		dst[n++] = c;
	}
	dst[n] = '\0';
	return true;
}

/* Reads a whole decimal number of at most `max`. */
static bool
read_number(const char *src, const char *end, int max, int *value)
{
	int64 n = 0;

	if (src == end)
		return false;
	for (; src < end; src++)
	{
		if (*src < '0' || *src > '9')
			return false;
		n = n * 10 + (*src - '0');
		if (n > max)
			return false;
	}
	*value = (int) n;
	return true;
}

/* user:password of src..end */
static bool
read_login(const char *src, const char *end, PpRedisUrl *out)
{
	const char *colon = memchr(src, ':', end - src);

	if (colon == NULL)
		return decode(src, end, out->user, sizeof(out->user));
	return decode(src, colon, out->user, sizeof(out->user)) &&
		   decode(colon + 1, end, out->password, sizeof(out->password));
}

/* host[:port] with [::1] for IPv6 */
static bool
read_address(const char *src, const char *end, PpRedisUrl *out, char *why, size_t why_len)
{
	const char *port = NULL;
	const char *host_end = end;

	if (src < end && *src == '[')
	{
		const char *close = memchr(src, ']', end - src);

		if (close == NULL)
			return fail(why, why_len, "The address in brackets does not end.");
		src++;
		host_end = close;
		if (close + 1 < end)
			port = close + 1;
	}
	else if ((port = memchr(src, ':', end - src)) != NULL)
		host_end = port;
	if (!decode(src, host_end, out->host, sizeof(out->host)))
		return fail(why, why_len, "The host name is too long or not well formed.");
	if (out->host[0] == '\0')
		strlcpy(out->host, "localhost", sizeof(out->host));
	if (port != NULL &&
		(*port != ':' || !read_number(port + 1, end, 65535, &out->port) || out->port == 0))
		return fail(why, why_len, "The port must be a number from 1 to 65535.");
	return true;
}

static bool
parse_tcp(const char *rest, PpRedisUrl *out, char *why, size_t why_len)
{
	const char *end = strpbrk(rest, "/?#");

	if (end == NULL)
		end = rest + strlen(rest);
	if (!read_address(rest, end, out, why, why_len))
		return false;
	if (*end == '/' && end[1] != '\0' &&
		!read_number(end + 1, end + strlen(end), PG_INT32_MAX, &out->db))
		return fail(why, why_len, "What follows the address must be a database number, as in /0.");
	if (*end == '?' || *end == '#')
		return fail(why, why_len, "Parameters are not supported in a redis:// URL.");
	return true;
}

static bool
parse_unix(const char *rest, PpRedisUrl *out, char *why, size_t why_len)
{
	const char *end = strchr(rest, '?');

	if (end != NULL && (strncmp(end, "?db=", 4) != 0 ||
						!read_number(end + 4, end + strlen(end), PG_INT32_MAX, &out->db)))
		return fail(why, why_len, "The only parameter is the database number, as in ?db=0.");
	if (end == NULL)
		end = rest + strlen(rest);
	out->is_unix = true;
	if (*rest != '/' || end - rest > 100 || !decode(rest, end, out->host, sizeof(out->host)))
		return fail(why, why_len,
					"The path of the socket must be absolute and of at most 100 bytes.");
	return true;
}

/*
 * pp_redis_url_parse
 *		Parses `url` into *out.  Returns false with a sentence in `why` when it is not usable.
 *		out->display is the URL with the password as ***; it is safe to show.
 */
bool
pp_redis_url_parse(const char *url, PpRedisUrl *out, char *why, size_t why_len)
{
	bool is_unix = strncmp(url, "unix://", 7) == 0;
	const char *rest = url + (is_unix ? 7 : 8);
	const char *at;
	size_t scheme_len = rest - url;

	memset(out, 0, sizeof(*out));
	out->port = DEFAULT_PORT;
	if (strncmp(url, "rediss://", 9) == 0)
		return fail(why, why_len,
					"TLS (rediss://) is not supported: reach Redis through a tunnel, such as "
					"stunnel, at an address of this machine.");
	if (!is_unix && strncmp(url, "redis://", 8) != 0)
		return fail(why, why_len,
					"It must begin with redis:// or unix://, for example redis://localhost:6379.");

	/* The last @: a password that holds an unescaped one is still understood. */
	at = strrchr(rest, '@');
	if (at != NULL)
	{
		if (!read_login(rest, at, out))
			return fail(why, why_len,
						"The user or the password is too long or not well formed; special "
						"characters are written as %%XX.");
		rest = at + 1;
	}
	if (at != NULL && out->password[0] != '\0')
	{
		const char *colon = strchr(url + scheme_len, ':');

		snprintf(out->display, sizeof(out->display), "%.*s:***@%s", (int) (colon - url), url, rest);
	}
	else
		strlcpy(out->display, url, sizeof(out->display));
	return is_unix ? parse_unix(rest, out, why, why_len) : parse_tcp(rest, out, why, why_len);
}
