/*
 * stream_facts.c
 *		What Redis says of a stream and a group as a whole, and what can be concluded from it.
 */
#include "stream.h"

/* Asks where the groups stand: one reply will come, for pp_stream_parse_group(). */
void
pp_stream_send_group(PpRedis *conn, const char *stream)
{
	pp_redis_send(conn, "XINFO GROUPS %s", stream);
}

/*
 * Asks for what pp_stream_parse_loose_facts() understands, one after the other: a Redis that is out of
 * memory queues nothing.  PP_STREAM_LOOSE_REPLIES replies will come.
 */
void
pp_stream_send_loose_facts(PpRedis *conn, const char *stream, const char *group)
{
	pp_redis_send(conn, "XINFO STREAM %s", stream);
	pp_redis_send(conn, "XINFO GROUPS %s", stream);
	pp_redis_send(conn, "XPENDING %s %s", stream, group);
}

/*
 * The same for pp_stream_parse_facts(): PP_STREAM_FACT_REPLIES replies will come.  In one
 * step, because numbers of different moments cannot be compared.
 */
void
pp_stream_send_facts(PpRedis *conn, const char *stream, const char *group)
{
	pp_redis_send(conn, "MULTI");
	pp_stream_send_loose_facts(conn, stream, group);
	pp_redis_send(conn, "EXEC");
}

/* "No such key" is an answer; every other error reply ends the measurement, and is what *error says. */
static bool
check_error(const PpReply *reply, bool *absent, PpRedisError *error)
{
	PpRedisError said;

	*absent = false;
	if (reply->type != PP_REPLY_ERROR)
		return true;
	pp_redis_error_reply(&said, reply->str, reply->len);
	*absent = said.class == PP_REDIS_CLASS_STRUCTURE;
	if (!*absent)
		*error = said;
	return *absent;
}

static bool
find_group(const PpReply *groups, const char *group, PpStreamFacts *facts)
{
	if (groups->type != PP_REPLY_ARRAY)
		return false;
	for (size_t i = 0; i < groups->len; i++)
	{
		const PpReply *one = &groups->items[i];
		const PpReply *name = pp_reply_lookup(one, "name");

		if (!pp_reply_is(name, PP_REPLY_STRING, 0) || strcmp(name->str, group) != 0)
			continue;
		facts->group_exists = true;
		facts->pending = pp_reply_number(pp_reply_lookup(one, "pending"));
		facts->consumers = pp_reply_number(pp_reply_lookup(one, "consumers"));
		facts->reported_lag = pp_reply_number(pp_reply_lookup(one, "lag"));
		facts->entries_read = pp_reply_number(pp_reply_lookup(one, "entries-read"));
		return pp_stream_parse_id(pp_reply_lookup(one, "last-delivered-id"),
								  &facts->last_delivered);
	}
	return true;
}

/* Is nothing left of the stream up to `id`? */
bool
pp_stream_is_gone_up_to(const PpStreamFacts *facts, PpId id)
{
	return facts->length == 0 || pp_id_compare(facts->first_entry, id) > 0;
}

/* Is the reader somewhere between the first entry and the last one? */
bool
pp_stream_is_inside(const PpStreamFacts *facts)
{
	return facts->group_exists && facts->length > 0 &&
		   pp_id_compare(facts->last_delivered, facts->first_entry) >= 0 &&
		   pp_id_compare(facts->last_delivered, facts->last_entry) < 0;
}

/*
 * What the group has not delivered yet.  XINFO's own lag does not exist in 6.2, is nil after
 * SETID, in a group made mid-stream and after XDEL, and counts entries that were trimmed unread;
 * where the reader stands before the first entry, or at the last one that is left, the number is
 * certain.  Between them it is wrong after a crash or a failover: of the group's entries-read, Redis
 * 7.0 to 8.0 replicates and logs only what XGROUP gave it (t_stream.c, streamPropagateXCLAIM()).
 */
static int64
count_undelivered(const PpStreamFacts *facts)
{
	if (!facts->key_exists || !facts->group_exists)
		return -1;
	if (pp_stream_is_inside(facts))
		return facts->reported_lag <= facts->length ? facts->reported_lag : -1;
	return pp_id_compare(facts->last_delivered, facts->last_entry) >= 0 ? 0 : facts->length;
}

static bool
parse_group(const PpReply *groups, const char *group, PpStreamFacts *facts, PpRedisError *error)
{
	bool absent;

	if (!check_error(groups, &absent, error))
		return false;
	facts->key_exists = !absent;
	return absent || find_group(groups, group, facts) ||
		   pp_stream_unexpected(error, "XINFO GROUPS");
}

/* The entry is nil, and its ID stays as it is, where the stream is empty. */
static bool
parse_entry_id(const PpReply *entry, PpId *id)
{
	return !pp_reply_is(entry, PP_REPLY_ARRAY, 1) || pp_stream_parse_id(&entry->items[0], id);
}

static bool
parse_stream(const PpReply *stream, PpStreamFacts *facts, PpRedisError *error)
{
	facts->length = pp_reply_number(pp_reply_lookup(stream, "length"));
	facts->added = pp_reply_number(pp_reply_lookup(stream, "entries-added"));
	(void) pp_stream_parse_id(pp_reply_lookup(stream, "max-deleted-entry-id"), &facts->max_deleted);
	if (pp_stream_parse_id(pp_reply_lookup(stream, "last-generated-id"), &facts->last_generated) &&
		parse_entry_id(pp_reply_lookup(stream, "first-entry"), &facts->first_entry) &&
		parse_entry_id(pp_reply_lookup(stream, "last-entry"), &facts->last_entry))
		return true;
	return pp_stream_unexpected(error, "XINFO STREAM");
}

static void
nothing_known(PpStreamFacts *facts)
{
	memset(facts, 0, sizeof(*facts));
	facts->length = facts->added = facts->entries_read = -1;
	facts->reported_lag = facts->undelivered = facts->pending = -1;
}

/*
 * pp_stream_parse_group
 *		Understands the reply of pp_stream_send_group(): what is said of the group, and nothing of the
 *		stream.  Returns false with *error filled when Redis refused.
 */
bool
pp_stream_parse_group(const PpReply *reply, const char *group, PpStreamFacts *facts,
					  PpRedisError *error)
{
	nothing_known(facts);
	return parse_group(reply, group, facts, error);
}

static bool
parse_answers(const PpReply *stream, const PpReply *groups, const PpReply *pending,
			  const char *group, PpStreamFacts *facts, PpRedisError *error)
{
	bool absent;

	if (!check_error(stream, &absent, error))
		return false;
	if (absent)
		return true;
	if (!parse_stream(stream, facts, error) || !parse_group(groups, group, facts, error) ||
		!check_error(pending, &absent, error))
		return false;
	/* [count, first ID, last ID, consumers] */
	if (!absent && pp_reply_is(pending, PP_REPLY_ARRAY, 2))
		(void) pp_stream_parse_id(&pending->items[1], &facts->oldest_pending);
	facts->undelivered = count_undelivered(facts);
	return true;
}

/*
 * pp_stream_parse_facts
 *		Understands the replies of pp_stream_send_facts().  Returns false with *error filled when Redis
 *		refused.
 */
bool
pp_stream_parse_facts(PpReply *const *replies, const char *group, PpStreamFacts *facts,
					  PpRedisError *error)
{
	const PpReply *answers = replies[PP_STREAM_FACT_REPLIES - 1];

	nothing_known(facts);
	/* What is refused when it is queued says why; EXEC says only that something was. */
	for (int i = 0; i < PP_STREAM_FACT_REPLIES; i++)
		if (replies[i]->type == PP_REPLY_ERROR)
		{
			pp_redis_error_reply(error, replies[i]->str, replies[i]->len);
			return false;
		}
	if (!pp_reply_is(answers, PP_REPLY_ARRAY, 3))
		return pp_stream_unexpected(error, "EXEC");
	return parse_answers(&answers->items[0], &answers->items[1], &answers->items[2], group, facts,
						 error);
}

/* Understands the replies of pp_stream_send_loose_facts(). */
bool
pp_stream_parse_loose_facts(PpReply *const *replies, const char *group, PpStreamFacts *facts,
							PpRedisError *error)
{
	nothing_known(facts);
	return parse_answers(replies[0], replies[1], replies[2], group, facts, error);
}

/* A few at a time: a script has whole entries in memory. */
static const char count_script[] =
	"local n, from, last, page = 0, ARGV[1], '0-0', nil "
	"repeat "
	"  page = redis.call('XRANGE', KEYS[1], from, ARGV[2], 'COUNT', 100) "
	"  n = n + #page "
	"  if #page > 0 then last = page[#page][1]; from = '(' .. last end "
	"until #page < 100 or last == ARGV[2] or n >= tonumber(ARGV[3]) "
	"return {n, last}";

/* Asks how many entries there are in after < ID <= last; they are counted up to `max`, in Redis. */
void
pp_stream_send_count(PpRedis *conn, const char *stream, PpId after, PpId last, int max)
{
	char from[PP_ID_LEN + 1];
	char to[PP_ID_LEN];

	pp_stream_print_range(after, last, from, to);
	pp_redis_send(conn, "EVAL %s 1 %s %s %s %d", count_script, stream, from, to, max);
}

/* The reply: [number, ID of the last one that was counted, if any]. */
bool
pp_stream_parse_count(const PpReply *reply, int64 *n, PpId *last, PpRedisError *error)
{
	if (pp_reply_is(reply, PP_REPLY_ARRAY, 2) && pp_reply_integer(&reply->items[0], n) &&
		pp_stream_parse_id(&reply->items[1], last))
		return true;
	return pp_stream_unexpected(error, "EVAL");
}
