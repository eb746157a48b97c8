/*
 * stream_facts.c
 *		What Redis says of a stream and a group as a whole, and what can be concluded from it.
 */
#include "stream.h"

/*
 * Asks where stream and groups stand: the first PP_STREAM_POSITION_REPLIES of the facts.  Sent
 * right before a read, it says what the read begins from: Redis serves what comes in one write
 * without a pause.
 */
void
pp_stream_send_position(PpRedis *conn, const char *stream)
{
	pp_redis_send(conn, "XINFO STREAM %s", stream);
	pp_redis_send(conn, "XINFO GROUPS %s", stream);
}

/* Asks for what pp_stream_parse_facts() understands: PP_STREAM_FACT_REPLIES replies will come. */
void
pp_stream_send_facts(PpRedis *conn, const char *stream, const char *group)
{
	pp_stream_send_position(conn, stream);
	pp_redis_send(conn, "XPENDING %s %s", stream, group);
}

static int64
number_or_unknown(const PpReply *reply)
{
	int64 n;

	return pp_reply_integer(reply, &n) ? n : -1;
}

/* "No such key" is an answer; every other error reply ends the measurement. */
static bool
check_error(const PpReply *reply, bool *absent, PpRedisError *error)
{
	*absent = false;
	if (reply->type != PP_REPLY_ERROR)
		return true;
	pp_redis_error_reply(error, reply->str, reply->len);
	*absent = error->class == PP_REDIS_CLASS_STRUCTURE;
	return *absent;
}

static bool
parse_group(const PpReply *groups, const char *group, PpStreamFacts *facts)
{
	for (size_t i = 0; i < groups->len; i++)
	{
		const PpReply *one = &groups->items[i];
		const PpReply *name = pp_reply_lookup(one, "name");

		if (!pp_reply_is(name, PP_REPLY_STRING, 0) || strcmp(name->str, group) != 0)
			continue;
		facts->group_exists = true;
		facts->pending = number_or_unknown(pp_reply_lookup(one, "pending"));
		facts->consumers = number_or_unknown(pp_reply_lookup(one, "consumers"));
		facts->reported_lag = number_or_unknown(pp_reply_lookup(one, "lag"));
		facts->entries_read = number_or_unknown(pp_reply_lookup(one, "entries-read"));
		return pp_stream_parse_id(pp_reply_lookup(one, "last-delivered-id"),
								  &facts->last_delivered);
	}
	return true;
}

/*
 * What the group has not delivered yet.  XINFO's own lag does not exist in 6.2, is nil after
 * SETID, in a group made mid-stream and after XDEL, and counts entries that were trimmed unread;
 * where the reader stands before the first entry, or at the last one, the number is certain.
 */
static int64
count_undelivered(const PpStreamFacts *facts)
{
	if (!facts->key_exists || !facts->group_exists)
		return -1;
	if (facts->length == 0 || pp_id_compare(facts->last_delivered, facts->last_generated) >= 0)
		return 0;
	if (pp_id_compare(facts->last_delivered, facts->first_entry) < 0)
		return facts->length;
	return facts->reported_lag;
}

/*
 * pp_stream_parse_facts
 *		Understands the three replies, or the first two of them (the third is NULL).  Returns false with *error filled when Redis refused.
 */
bool
pp_stream_parse_facts(PpReply *const *replies, const char *group, PpStreamFacts *facts,
					  PpRedisError *error)
{
	const PpReply *first;
	bool absent;

	memset(facts, 0, sizeof(*facts));
	facts->length = facts->added = facts->entries_read = -1;
	facts->reported_lag = facts->undelivered = facts->pending = -1;

	if (!check_error(replies[0], &absent, error))
		return false;
	if (absent)
		return true;
	facts->key_exists = true;
	facts->length = number_or_unknown(pp_reply_lookup(replies[0], "length"));
	facts->added = number_or_unknown(pp_reply_lookup(replies[0], "entries-added"));
	(void) pp_stream_parse_id(pp_reply_lookup(replies[0], "max-deleted-entry-id"),
							  &facts->max_deleted);
	first = pp_reply_lookup(replies[0], "first-entry");
	if (!pp_stream_parse_id(pp_reply_lookup(replies[0], "last-generated-id"),
							&facts->last_generated) ||
		(pp_reply_is(first, PP_REPLY_ARRAY, 1) &&
		 !pp_stream_parse_id(&first->items[0], &facts->first_entry)))
		return pp_stream_unexpected(error, "XINFO STREAM");

	if (!check_error(replies[1], &absent, error))
		return false;
	if (!absent && (replies[1]->type != PP_REPLY_ARRAY || !parse_group(replies[1], group, facts)))
		return pp_stream_unexpected(error, "XINFO GROUPS");
	if (replies[2] != NULL && !check_error(replies[2], &absent, error))
		return false;
	/* [count, first ID, last ID, consumers] */
	if (replies[2] != NULL && !absent && pp_reply_is(replies[2], PP_REPLY_ARRAY, 2))
		(void) pp_stream_parse_id(&replies[2]->items[1], &facts->oldest_pending);
	facts->undelivered = count_undelivered(facts);
	return true;
}
