/*
 * stream.c
 *		The stream commands: send them, understand their replies.
 *
 * Whatever Redis, or what answers in its place, sends: types and lengths are checked before they
 * are used, and a reply of another shape is an error of the connection, never of an entry.
 * Reply shapes: redis.io/commands, verified against t_stream.c of 6.2, 7.0 and 8.0.
 */
#include "stream.h"

#include "utils/builtins.h"
#include "utils/memutils.h"

static PpString
as_string(const char *s)
{
	PpString result = {s, strlen(s)};

	return result;
}

static bool
unexpected(PpRedisError *error, const char *command)
{
	pp_redis_error_set(error, PP_REDIS_CLASS_MOMENT, "redis_protocol",
					   "the reply to %s has a shape that was not expected", command);
	return false;
}

/* An ID in a reply. */
static bool
read_id(const PpReply *reply, PpId *id)
{
	return pp_reply_is(reply, PP_REPLY_STRING, 1) && pp_id_parse(reply->str, reply->len, id);
}

/*
 * pp_stream_send_read
 *		XREADGROUP of at most `count` entries: new ones, or with own_after those that this consumer
 *		has received before and not acknowledged, from the first after that ID on.  block_ms < 0
 *		does not block.
 */
void
pp_stream_send_read(PpRedis *conn, const char *stream, const char *group, const char *consumer,
					const PpId *own_after, int count, int block_ms)
{
	if (own_after != NULL)
	{
		char id[PP_ID_LEN];

		pp_id_print(*own_after, id);
		pp_redis_send(conn, "XREADGROUP GROUP %s %s COUNT %d STREAMS %s %s", group, consumer, count,
					  stream, id);
	}
	else if (block_ms >= 0)
		pp_redis_send(conn, "XREADGROUP GROUP %s %s COUNT %d BLOCK %d STREAMS %s >", group,
					  consumer, count, block_ms, stream);
	else
		pp_redis_send(conn, "XREADGROUP GROUP %s %s COUNT %d STREAMS %s >", group, consumer, count,
					  stream);
}

/* A name or a value. Redis sends strings; of what is none, as much is kept as can be. */
static PpString
field_string(const PpReply *item, MemoryContext cxt)
{
	if (item->type == PP_REPLY_INTEGER)
	{
		char *number = MemoryContextAlloc(cxt, MAXINT8LEN + 1);

		pg_lltoa(item->integer, number);
		return as_string(number);
	}
	if (item->type == PP_REPLY_STRING)
		return (PpString){item->str, item->len};
	return as_string("");
}

/* [id, [name, value, …]], or [id, nil] for an entry that is pending and no longer there */
static bool
parse_entry(const PpReply *reply, PpEntry *entry, MemoryContext cxt)
{
	const PpReply *body;

	if (!pp_reply_is(reply, PP_REPLY_ARRAY, 2) || !read_id(&reply->items[0], &entry->id))
		return false;
	body = &reply->items[1];
	if (body->type == PP_REPLY_NIL)
	{
		entry->nfields = -1;
		entry->verdict = PP_VERDICT_GONE;
		return true;
	}
	if (body->type != PP_REPLY_ARRAY)
		return false;
	entry->nfields = (int) body->len;
	entry->fields = MemoryContextAllocHuge(cxt, Max(body->len, 1) * sizeof(PpString));
	for (size_t i = 0; i < body->len; i++)
	{
		entry->fields[i] = field_string(&body->items[i], cxt);
		entry->malformed |= body->items[i].type != PP_REPLY_STRING;
		entry->bytes += entry->fields[i].len;
	}
	return true;
}

/*
 * pp_stream_parse_read
 *		Makes a batch of an XREADGROUP reply for one stream; the entries point into the reply.
 *		batch->cxt must be set and be the context that the reply was built in.  An empty batch is
 *		no error.  Returns false with *error filled otherwise.
 */
bool
pp_stream_parse_read(const PpReply *reply, PpBatch *batch, PpRedisError *error)
{
	const PpReply *list;

	batch->n = 0;
	batch->bytes = 0;
	batch->entries = NULL;
	if (reply->type == PP_REPLY_NIL)
		return true;
	if (reply->type == PP_REPLY_ERROR)
	{
		pp_redis_error_reply(error, reply->str, reply->len);
		return false;
	}
	/* [[stream, [entry, …]]] */
	if (!pp_reply_is(reply, PP_REPLY_ARRAY, 1) ||
		!pp_reply_is(&reply->items[0], PP_REPLY_ARRAY, 2) ||
		reply->items[0].items[1].type != PP_REPLY_ARRAY)
		return unexpected(error, "XREADGROUP");
	list = &reply->items[0].items[1];
	batch->entries = MemoryContextAllocExtended(batch->cxt, Max(list->len, 1) * sizeof(PpEntry),
												MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (size_t i = 0; i < list->len; i++)
	{
		if (!parse_entry(&list->items[i], &batch->entries[i], batch->cxt) ||
			(i > 0 && pp_id_compare(batch->entries[i - 1].id, batch->entries[i].id) >= 0))
			return unexpected(error, "XREADGROUP");
		batch->bytes += batch->entries[i].bytes;
	}
	batch->n = (int) list->len;
	return true;
}

/* Queues these words and then the IDs. */
static void
send_ids(PpRedis *conn, const PpString *words, int num_words, const PpId *ids, int n,
		 const char *last)
{
	PpString *all = palloc((num_words + n + 1) * sizeof(PpString));
	char *buf = palloc((Size) n * PP_ID_LEN);

	memcpy(all, words, num_words * sizeof(PpString));
	for (int i = 0; i < n; i++)
	{
		char *id = buf + (Size) i * PP_ID_LEN;

		all[num_words + i].data = id;
		all[num_words + i].len = pp_id_print(ids[i], id);
	}
	if (last != NULL)
		all[num_words + n] = as_string(last);
	pp_redis_send_strings(conn, num_words + n + (last ? 1 : 0), all);
	pfree(buf);
	pfree(all);
}

/* One XACK for all these IDs. The reply is their number, less those that were not pending. */
void
pp_stream_send_ack(PpRedis *conn, const char *stream, const char *group, const PpId *ids, int n)
{
	PpString words[] = {as_string("XACK"), as_string(stream), as_string(group)};

	send_ids(conn, words, lengthof(words), ids, n, NULL);
}

/* XCLAIM of these pending entries for `consumer`, however short they have been idle. */
void
pp_stream_send_claim(PpRedis *conn, const char *stream, const char *group, const char *consumer,
					 const PpId *ids, int n)
{
	PpString words[] = {as_string("XCLAIM"), as_string(stream), as_string(group),
						as_string(consumer), as_string("0")};

	send_ids(conn, words, lengthof(words), ids, n, "JUSTID");
}

/* The ID in a line of XPENDING's extended form: [id, consumer, idle, deliveries] */
bool
pp_stream_parse_pending(const PpReply *reply, PpId *id, PpRedisError *error)
{
	if (pp_reply_is(reply, PP_REPLY_ARRAY, 1) && read_id(&reply->items[0], id))
		return true;
	return unexpected(error, "XPENDING");
}

/* XGROUP CREATE with MKSTREAM; BUSYGROUP in the reply means that it is there already. */
void
pp_stream_send_create_group(PpRedis *conn, const char *stream, const char *group,
							const char *start_id)
{
	pp_redis_send(conn, "XGROUP CREATE %s %s %s MKSTREAM", stream, group, start_id);
}

/* Asks for what pp_stream_parse_facts() understands: PP_STREAM_FACT_REPLIES replies will come. */
void
pp_stream_send_facts(PpRedis *conn, const char *stream, const char *group)
{
	pp_redis_send(conn, "XINFO STREAM %s", stream);
	pp_redis_send(conn, "XINFO GROUPS %s", stream);
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
		facts->reported_lag = number_or_unknown(pp_reply_lookup(one, "lag"));
		return read_id(pp_reply_lookup(one, "last-delivered-id"), &facts->last_delivered);
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
 *		Understands the three replies.  Returns false with *error filled when Redis refused.
 */
bool
pp_stream_parse_facts(PpReply *const *replies, const char *group, PpStreamFacts *facts,
					  PpRedisError *error)
{
	const PpReply *first;
	bool absent;

	memset(facts, 0, sizeof(*facts));
	facts->length = facts->added = facts->reported_lag = facts->undelivered = facts->pending = -1;

	if (!check_error(replies[0], &absent, error))
		return false;
	if (absent)
		return true;
	facts->key_exists = true;
	facts->length = number_or_unknown(pp_reply_lookup(replies[0], "length"));
	facts->added = number_or_unknown(pp_reply_lookup(replies[0], "entries-added"));
	first = pp_reply_lookup(replies[0], "first-entry");
	if (!read_id(pp_reply_lookup(replies[0], "last-generated-id"), &facts->last_generated) ||
		(pp_reply_is(first, PP_REPLY_ARRAY, 1) && !read_id(&first->items[0], &facts->first_entry)))
		return unexpected(error, "XINFO STREAM");

	if (!check_error(replies[1], &absent, error))
		return false;
	if (!absent && (replies[1]->type != PP_REPLY_ARRAY || !parse_group(replies[1], group, facts)))
		return unexpected(error, "XINFO GROUPS");
	if (!check_error(replies[2], &absent, error))
		return false;
	/* [count, first ID, last ID, consumers] */
	if (!absent && pp_reply_is(replies[2], PP_REPLY_ARRAY, 2))
		(void) read_id(&replies[2]->items[1], &facts->oldest_pending);
	facts->undelivered = count_undelivered(facts);
	return true;
}
