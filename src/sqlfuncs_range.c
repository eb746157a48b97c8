/*
 * sqlfuncs_range.c
 *		A range of a stream for SQL functions, page by page.
 *
 * A page has fewer entries when those before were large, so that a range of large entries is not in
 * memory as a whole.
 */
#include "sqlfuncs.h"

#include "utils/memutils.h"


#define PAGE_ENTRIES 100
#define PENDING_PAGE 1000
#define PAGE_BYTES   ((size_t) 1024 * 1024)

/* An ID as XRANGE takes it; `name` is the argument's, seq that of an ID without one. */
static PpId
parse_bound(const char *text, const char *name, uint64 seq, bool *exclusive)
{
	const char *id_text = text;
	PpId id;

	*exclusive = text[0] == '(';
	if (*exclusive)
		id_text++;
	else if (strcmp(text, "-") == 0)
		return (PpId){0, 0};
	else if (strcmp(text, "+") == 0)
		return PP_ID_MAX;
	if (!pp_id_parse(id_text, strlen(id_text), &id))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid %s \"%s\"", name, text),
				 errhint("It is an entry ID such as 1764000000000-0, with a bracket before it, "
						 "as in (1764000000000-0, the next one; - is the lowest ID, + the "
						 "highest.")));
	if (strchr(id_text, '-') == NULL)
		id.seq = seq;
	return id;
}

/*
 * pp_function_range
 *		The range from..to of the pipeline's stream, as XRANGE has it.  Throws when an ID is none.
 */
PpRange
pp_function_range(const PpPipeline *p, const char *from, const char *to)
{
	PpRange range = {.stream = p->stream, .page = 1};
	bool exclusive;

	range.after = parse_bound(from, "from_id", 0, &exclusive);
	if (!exclusive)
		range.after = pp_id_previous(range.after);
	range.last = parse_bound(to, "to_id", PG_UINT64_MAX, &exclusive);
	if (exclusive)
		range.last = pp_id_previous(range.last);
	return range;
}

/*
 * pp_function_next_page
 *		Reads the next entries of the range, at most `max`, into `batch`, whose context is reset before.
 *		False: there are none.
 */
bool
pp_function_next_page(PpRedis *conn, PpRange *range, int max, PpBatch *batch)
{
	PpRedisError error;
	PpReply *reply;

	MemoryContextReset(batch->cxt);
	pp_redis_reply_target(conn, batch->cxt, PP_FUNCTION_REPLY);
	pp_stream_send_range(conn, range->stream, range->after, range->last, Min(max, range->page));
	reply = pp_function_reply(conn);
	if (!pp_stream_parse_range(reply, batch, &error))
		pp_function_fail(reply);
	if (batch->n == 0)
		return false;
	range->after = batch->entries[batch->n - 1].id;
	range->page = (int) Min(PAGE_ENTRIES, PAGE_BYTES / Max(batch->bytes / batch->n, 1));
	range->page = Max(range->page, 1);
	return true;
}

/* The entry with this ID as it is in the stream, in the current memory context; NULL: there is none. */
PpEntry *
pp_function_read_entry(PpRedis *conn, const PpPipeline *p, PpId id)
{
	PpBatch found = {.cxt = CurrentMemoryContext};
	PpRedisError error;
	PpReply *reply;

	pp_stream_send_range(conn, p->stream, pp_id_previous(id), id, 1);
	reply = pp_function_reply(conn);
	if (!pp_stream_parse_range(reply, &found, &error))
		pp_function_fail(reply);
	return found.n == 1 ? &found.entries[0] : NULL;
}

/* What Redis says of the pipeline's group, and nothing of the stream. */
PpStreamFacts
pp_function_group(PpRedis *conn, const PpPipeline *p)
{
	PpStreamFacts facts;
	PpRedisError error;
	PpReply *reply;

	pp_stream_send_group(conn, p->stream);
	reply = pp_function_reply(conn);
	if (!pp_stream_parse_group(reply, p->group, &facts, &error))
		pp_function_fail(reply);
	return facts;
}

/* For bsearch(), of PpId. */
int
pp_id_compare_pointers(const void *a, const void *b)
{
	return pp_id_compare(*(const PpId *) a, *(const PpId *) b);
}

PpId *
pp_function_page_ids(const PpBatch *batch)
{
	PpId *ids = palloc(batch->n * sizeof(PpId));

	for (int i = 0; i < batch->n; i++)
		ids[i] = batch->entries[i].id;
	return ids;
}

/* Sets pending[i] of those of the IDs, in stream order, that are pending in the group, for whomever. */
void
pp_function_find_pending(PpRedis *conn, const PpPipeline *p, const PpId *ids, int n, bool *pending)
{
	PpId after = pp_id_previous(ids[0]);
	PpReply *reply;

	do
	{
		pp_stream_send_pending(conn, p->stream, p->group, after, ids[n - 1], PENDING_PAGE);
		reply = pp_function_reply(conn);
		if (reply->type != PP_REPLY_ARRAY)
			pp_function_fail(reply);
		for (size_t i = 0; i < reply->len; i++)
		{
			PpRedisError error;
			const PpId *found;

			if (!pp_stream_parse_pending(&reply->items[i], &after, &error))
				pp_function_fail(reply);
			found = bsearch(&after, ids, n, sizeof(PpId), pp_id_compare_pointers);
			if (found != NULL)
				pending[found - ids] = true;
		}
	} while (reply->len == PENDING_PAGE);
}
