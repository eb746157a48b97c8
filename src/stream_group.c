/*
 * stream_group.c
 *		The consumers of a group: who they are, taking over what is pending for them, deleting them.
 *
 * Taking over and deleting are scripts, because both have to look and act in one step:
 *	- XAUTOCLAIM takes from every consumer of the group, running workers among them; XCLAIM takes an
 *	  entry from whoever has it meanwhile.  And from 7.0 on both drop an entry that was deleted or
 *	  trimmed from the list of pending ones in the same moment: if the reply is lost, nobody ever
 *	  hears of it.  The script takes from one consumer, and what is gone stays pending for it until
 *	  the loss is on record and acknowledged.
 *	- XGROUP DELCONSUMER throws away what is pending for the consumer.
 * They run on 6.2 to 8.x.  An error inside them comes back as the command gave it: 6.2 would bury
 * its code word in a text.
 */
#include "stream_group.h"

#include "utils/builtins.h"

#include "stream.h"

/* KEYS: stream. ARGV: group, to, from, least idle time (ms), first ID, last ID, count. */
static const char claim_script[] =
	"local page = redis.pcall('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[4], ARGV[5], ARGV[6], "
	"ARGV[7], ARGV[3])\n"
	"if page.err then return page end\n"
	"local here, gone, last = {}, {}, '0-0'\n"
	"for _, line in ipairs(page) do\n"
	"  last = line[1]\n"
	"  local found = redis.pcall('XRANGE', KEYS[1], last, last)\n"
	"  if found.err then return found end\n"
	"  if #found > 0 then here[#here + 1] = last else gone[#gone + 1] = last end\n"
	"end\n"
	"local n = #here\n"
	"if n > 0 then\n"
	"  here[n + 1] = 'JUSTID'\n"
	"  local claimed = redis.pcall('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(here))\n"
	"  if claimed.err then return claimed end\n"
	"  n = #claimed\n"
	"end\n"
	"return {#page, n, last, gone}\n";

/* KEYS: stream. ARGV: group, least idle time (ms), consumers. */
static const char reap_script[] =
	"local list = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])\n"
	"if list.err then return list end\n"
	"local known, result = {}, {}\n"
	"for _, line in ipairs(list) do\n"
	"  local one = {}\n"
	"  for i = 1, #line, 2 do one[line[i]] = line[i + 1] end\n"
	"  known[one.name] = one\n"
	"end\n"
	"for i = 3, #ARGV do\n"
	"  local one, reaped = known[ARGV[i]], 0\n"
	"  if one == nil then one = {idle = -1, pending = 0} end\n"
	"  if one.pending == 0 and one.idle >= 0 and one.idle >= tonumber(ARGV[2]) then\n"
	"    local done = redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[i])\n"
	"    if type(done) == 'table' and done.err then return done end\n"
	"    reaped = 1\n"
	"  end\n"
	"  result[i - 2] = {one.idle, one.pending, reaped}\n"
	"end\n"
	"return result\n";

void
pp_stream_send_consumers(PpRedis *conn, const char *stream, const char *group)
{
	pp_redis_send(conn, "XINFO CONSUMERS %s %s", stream, group);
}

/*
 * pp_stream_parse_consumers
 *		The lines of XINFO CONSUMERS, in the current memory context; names point into the reply.
 */
bool
pp_stream_parse_consumers(const PpReply *reply, PpConsumer **consumers, int *n, PpRedisError *error)
{
	if (reply->type != PP_REPLY_ARRAY)
		return pp_stream_unexpected(error, "XINFO CONSUMERS");
	*n = (int) reply->len;
	*consumers = palloc(Max(reply->len, 1) * sizeof(PpConsumer));
	for (int i = 0; i < *n; i++)
	{
		const PpReply *line = &reply->items[i];
		const PpReply *name = pp_reply_lookup(line, "name");
		PpConsumer *one = &(*consumers)[i];

		if (!pp_reply_is(name, PP_REPLY_STRING, 0))
			return pp_stream_unexpected(error, "XINFO CONSUMERS");
		one->name.data = name->str;
		one->name.len = name->len;
		one->pending = pp_reply_number(pp_reply_lookup(line, "pending"));
		one->idle_ms = pp_reply_number(pp_reply_lookup(line, "idle"));
		one->inactive_ms = pp_reply_number(pp_reply_lookup(line, "inactive"));
	}
	return true;
}

/* A line of XPENDING's extended form: [id, consumer, idle, deliveries] */
bool
pp_stream_parse_pending_line(const PpReply *reply, PpPending *pending, PpRedisError *error)
{
	if (!pp_reply_is(reply, PP_REPLY_ARRAY, 4) ||
		!pp_stream_parse_id(&reply->items[0], &pending->id) ||
		!pp_reply_is(&reply->items[1], PP_REPLY_STRING, 0))
		return pp_stream_unexpected(error, "XPENDING");
	pending->consumer.data = reply->items[1].str;
	pending->consumer.len = reply->items[1].len;
	pending->idle_ms = pp_reply_number(&reply->items[2]);
	pending->deliveries = pp_reply_number(&reply->items[3]);
	return true;
}

/*
 * pp_stream_send_claim
 *		Hands entries that are pending for `from`, at most `count`, after this ID (0-0: from the
 *		first on) and idle for at least min_idle_ms, over to `to`.  Their delivery counts stay.
 */
void
pp_stream_send_claim(PpRedis *conn, const char *stream, const char *group, const char *to,
					 const PpString *from, int64 min_idle_ms, PpId after, int count)
{
	char idle[MAXINT8LEN + 1];
	char first[PP_ID_LEN + 1];
	char last[PP_ID_LEN];
	char max[12];
	PpString words[] = {pp_string("EVAL"),
						pp_string(claim_script),
						pp_string("1"),
						pp_string(stream),
						pp_string(group),
						pp_string(to),
						*from,
						{idle, 0},
						{first, 0},
						{last, 0},
						{max, 0}};

	words[7].len = pg_lltoa(min_idle_ms, idle);
	pp_stream_print_range(after, PP_ID_MAX, first, last);
	words[8].len = strlen(first);
	words[9].len = strlen(last);
	words[10].len = snprintf(max, sizeof(max), "%d", count);
	pp_redis_send_strings(conn, lengthof(words), words);
}

/* The reply: [listed, claimed, last ID, [ID, …]]. `gone` is in the current memory context. */
bool
pp_stream_parse_claim(const PpReply *reply, PpClaimed *claimed, PpRedisError *error)
{
	const PpReply *gone;

	if (!pp_reply_is(reply, PP_REPLY_ARRAY, 4) ||
		!pp_reply_integer(&reply->items[0], &claimed->listed) ||
		!pp_reply_integer(&reply->items[1], &claimed->claimed) ||
		!pp_stream_parse_id(&reply->items[2], &claimed->last) ||
		reply->items[3].type != PP_REPLY_ARRAY)
		return pp_stream_unexpected(error, "EVAL");
	gone = &reply->items[3];
	claimed->num_gone = (int) gone->len;
	claimed->gone = palloc(Max(gone->len, 1) * sizeof(PpId));
	for (int i = 0; i < claimed->num_gone; i++)
		if (!pp_stream_parse_id(&gone->items[i], &claimed->gone[i]))
			return pp_stream_unexpected(error, "EVAL");
	return true;
}

/* Deletes those of these consumers, at most PP_REAP_PAGE, that have nothing pending and were idle
 * for at least min_idle_ms. */
void
pp_stream_send_reap(PpRedis *conn, const char *stream, const char *group, int64 min_idle_ms,
					const PpString *names, int n)
{
	char idle[MAXINT8LEN + 1];
	PpString *words = palloc((6 + n) * sizeof(PpString));

	words[0] = pp_string("EVAL");
	words[1] = pp_string(reap_script);
	words[2] = pp_string("1");
	words[3] = pp_string(stream);
	words[4] = pp_string(group);
	words[5].data = idle;
	words[5].len = pg_lltoa(min_idle_ms, idle);
	memcpy(words + 6, names, n * sizeof(PpString));
	pp_redis_send_strings(conn, 6 + n, words);
	pfree(words);
}

/* The reply, one [idle, pending, reaped] for each of the n names, into reaped[]. */
bool
pp_stream_parse_reap(const PpReply *reply, int n, PpReaped *reaped, PpRedisError *error)
{
	if (reply->type != PP_REPLY_ARRAY || reply->len != n)
		return pp_stream_unexpected(error, "EVAL");
	for (int i = 0; i < n; i++)
	{
		const PpReply *line = &reply->items[i];
		int64 done;

		if (!pp_reply_is(line, PP_REPLY_ARRAY, 3) ||
			!pp_reply_integer(&line->items[0], &reaped[i].idle_ms) ||
			!pp_reply_integer(&line->items[1], &reaped[i].pending) ||
			!pp_reply_integer(&line->items[2], &done))
			return pp_stream_unexpected(error, "EVAL");
		reaped[i].reaped = done != 0;
	}
	return true;
}
