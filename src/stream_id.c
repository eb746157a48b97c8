/*
 * stream_id.c
 *		Parse, print and compare stream entry IDs.
 *
 * Redis prints an ID as <milliseconds>-<sequence>, both unsigned 64-bit decimal numbers
 * (t_stream.c, streamParseStrictIDOrReply); a lone <milliseconds> means sequence 0.
 */
#include "stream_id.h"

#include "common/int.h"
#include "utils/timestamp.h"

#define UNIX_EPOCH_OFFSET ((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY)

/* Reads decimal digits up to `end`; false when there are none, or more than 64 bits of them. */
static bool
parse_number(const char **p, const char *end, uint64 *value)
{
	const char *start = *p;
	uint64 n = 0;

	while (*p < end && **p >= '0' && **p <= '9')
	{
		uint64 digit = (uint64) (**p - '0');

		if (n > (PG_UINT64_MAX - digit) / 10)
			return false;
		n = n * 10 + digit;
		(*p)++;
	}
	*value = n;
	return *p > start;
}

/*
 * pp_id_parse
 *		Reads "ms-seq" or "ms" of `len` bytes into *id.  Returns false, with *id undefined, when it
 *		is anything else.
 */
bool
pp_id_parse(const char *str, size_t len, PpId *id)
{
	const char *p = str;
	const char *end = str + len;

	id->seq = 0;
	if (!parse_number(&p, end, &id->ms))
		return false;
	if (p == end)
		return true;
	if (*p++ != '-')
		return false;
	return parse_number(&p, end, &id->seq) && p == end;
}

/* Writes the digits of `value` at `buf` and returns their number; no terminating zero. */
static int
print_number(uint64 value, char *buf)
{
	char digits[20];
	int n = 0;

	do
	{
		digits[n++] = (char) ('0' + value % 10);
		value /= 10;
	} while (value > 0);
	for (int i = 0; i < n; i++)
		buf[i] = digits[n - 1 - i];
	return n;
}

/*
 * pp_id_print
 *		Writes "ms-seq" and a zero into buf (PP_ID_LEN bytes); returns the length without the zero.
 */
int
pp_id_print(PpId id, char *buf)
{
	int n = print_number(id.ms, buf);

	buf[n++] = '-';
	n += print_number(id.seq, buf + n);
	buf[n] = '\0';
	return n;
}

/* -1, 0 or 1, in stream order. */
int
pp_id_compare(PpId a, PpId b)
{
	if (a.ms != b.ms)
		return a.ms < b.ms ? -1 : 1;
	if (a.seq != b.seq)
		return a.seq < b.seq ? -1 : 1;
	return 0;
}

PpId
pp_id_max(PpId a, PpId b)
{
	return pp_id_compare(a, b) > 0 ? a : b;
}

/* The ID just below `id`; 0-0 stays as it is.  A group made at it delivers `id` first. */
PpId
pp_id_previous(PpId id)
{
	if (id.seq > 0)
		id.seq--;
	else if (id.ms > 0)
	{
		id.ms--;
		id.seq = PG_UINT64_MAX;
	}
	return id;
}

/* The ID just above `id`; the highest one stays as it is. */
PpId
pp_id_next(PpId id)
{
	if (id.seq < PG_UINT64_MAX)
		id.seq++;
	else if (id.ms < PG_UINT64_MAX)
	{
		id.ms++;
		id.seq = 0;
	}
	return id;
}

/* The lowest ID that an entry added at `at` can have. */
PpId
pp_id_at_time(TimestampTz at)
{
	PpId id = {0, 0};
	int64 usec;

	if (TIMESTAMP_IS_NOEND(at))
	{
		id.ms = id.seq = PG_UINT64_MAX;
		return id;
	}
	if (TIMESTAMP_IS_NOBEGIN(at) || pg_add_s64_overflow(at, UNIX_EPOCH_OFFSET, &usec) || usec < 0)
		return id;
	id.ms = (uint64) usec / 1000;
	return id;
}

/* The time in an ID; infinity where PostgreSQL cannot represent it (IDs given by hand). */
TimestampTz
pp_id_time(PpId id)
{
	if (id.ms >= (uint64) END_TIMESTAMP / 1000 + (uint64) UNIX_EPOCH_OFFSET / 1000)
		return DT_NOEND;
	return (TimestampTz) (id.ms * 1000 - (uint64) UNIX_EPOCH_OFFSET);
}

/* Seconds since an ID was given; 0 when it is of a time to come. */
double
pp_id_age(PpId id, TimestampTz now)
{
	TimestampTz at = pp_id_time(id);

	return at >= now ? 0 : (double) (now - at) / USECS_PER_SEC;
}
