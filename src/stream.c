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

/* Says that a reply has a shape that was not expected; returns false. */
bool
pp_stream_unexpected(PpRedisError *error, const char *command)
{
	pp_redis_error_set(error, PP_REDIS_CLASS_MOMENT, "redis_protocol",
					   "the reply to %s has a shape that was not expected", command);
	return false;
}

/* An ID in a reply. */
bool
pp_stream_parse_id(const PpReply *reply, PpId *id)
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
		return pp_string(number);
	}
	if (item->type == PP_REPLY_STRING)
		return (PpString){item->str, item->len};
	return pp_string("");
}

/* [id, [name, value, …]], or [id, nil] for an entry that is pending and no longer there */
static bool
parse_entry(const PpReply *reply, PpEntry *entry, MemoryContext cxt)
{
	const PpReply *body;

	if (!pp_reply_is(reply, PP_REPLY_ARRAY, 2) || !pp_stream_parse_id(&reply->items[0], &entry->id))
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
	entry->in_texts = !entry->malformed;
	return true;
}

/* [entry, …], in stream order */
static bool
parse_entries(const PpReply *list, PpBatch *batch)
{
	batch->n = 0;
	batch->bytes = 0;
	if (list->type != PP_REPLY_ARRAY)
		return false;
	batch->entries = MemoryContextAllocExtended(batch->cxt, Max(list->len, 1) * sizeof(PpEntry),
												MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (size_t i = 0; i < list->len; i++)
	{
		if (!parse_entry(&list->items[i], &batch->entries[i], batch->cxt) ||
			(i > 0 && pp_id_compare(batch->entries[i - 1].id, batch->entries[i].id) >= 0))
			return false;
		batch->bytes += batch->entries[i].bytes;
	}
	batch->n = (int) list->len;
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
	if (!pp_reply_is(reply, PP_REPLY_ARRAY, 1) || !pp_reply_is(&reply->items[0], PP_REPLY_ARRAY, 2))
		return pp_stream_unexpected(error, "XREADGROUP");
	return parse_entries(&reply->items[0].items[1], batch) ||
		   pp_stream_unexpected(error, "XREADGROUP");
}

/* Like pp_stream_parse_read(), of an XRANGE reply. */
bool
pp_stream_parse_range(const PpReply *reply, PpBatch *batch, PpRedisError *error)
{
	return parse_entries(reply, batch) || pp_stream_unexpected(error, "XRANGE");
}

/* One XACK for all these IDs. The reply is their number, less those that were not pending. */
void
pp_stream_send_ack(PpRedis *conn, const char *stream, const char *group, const PpId *ids, int n)
{
	PpString *words = palloc((3 + n) * sizeof(PpString));
	char *buf = palloc((Size) n * PP_ID_LEN);

	words[0] = pp_string("XACK");
	words[1] = pp_string(stream);
	words[2] = pp_string(group);
	for (int i = 0; i < n; i++)
	{
		char *id = buf + (Size) i * PP_ID_LEN;

		words[3 + i].data = id;
		words[3 + i].len = pp_id_print(ids[i], id);
	}
	pp_redis_send_strings(conn, 3 + n, words);
	pfree(buf);
	pfree(words);
}

/*
 * pp_stream_print_range
 *		The range after..last, `after` not included, as XRANGE and XPENDING take it, into
 *		from[PP_ID_LEN + 1] and to[PP_ID_LEN].  Nothing comes after the highest ID, but Redis takes a
 *		range that begins there for an error: so it is asked for one that is empty.
 */
void
pp_stream_print_range(PpId after, PpId last, char *from, char *to)
{
	if (pp_id_compare(after, PP_ID_MAX) == 0)
	{
		strcpy(from, "+");
		strcpy(to, "-");
		return;
	}
	from[0] = '(';
	pp_id_print(after, from + 1);
	pp_id_print(last, to);
}

/* The range after..last of the stream, `after` not included, at most `count` entries. */
void
pp_stream_send_range(PpRedis *conn, const char *stream, PpId after, PpId last, int count)
{
	char from[PP_ID_LEN + 1];
	char to[PP_ID_LEN];

	pp_stream_print_range(after, last, from, to);
	pp_redis_send(conn, "XRANGE %s %s %s COUNT %d", stream, from, to, count);
}

/* What is pending in the group for anybody after `after`, up to `last`; at most `count` lines. */
void
pp_stream_send_pending(PpRedis *conn, const char *stream, const char *group, PpId after, PpId last,
					   int count)
{
	char from[PP_ID_LEN + 1];
	char to[PP_ID_LEN];

	pp_stream_print_range(after, last, from, to);
	pp_redis_send(conn, "XPENDING %s %s %s %s %d", stream, group, from, to, count);
}

/* The ID in a line of XPENDING's extended form: [id, consumer, idle, deliveries] */
bool
pp_stream_parse_pending(const PpReply *reply, PpId *id, PpRedisError *error)
{
	if (pp_reply_is(reply, PP_REPLY_ARRAY, 1) && pp_stream_parse_id(&reply->items[0], id))
		return true;
	return pp_stream_unexpected(error, "XPENDING");
}

/* XGROUP CREATE with MKSTREAM; BUSYGROUP in the reply means that it is there already. */
void
pp_stream_send_create_group(PpRedis *conn, const char *stream, const char *group,
							const char *start_id)
{
	pp_redis_send(conn, "XGROUP CREATE %s %s %s MKSTREAM", stream, group, start_id);
}
