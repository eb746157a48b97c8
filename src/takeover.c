/*
 * takeover.c
 *		Entries that are pending for workers which the pipeline does not have any more.
 *
 * A pipeline that is made anew with fewer workers leaves consumers behind: nobody would read what
 * they had received and not acknowledged.  Worker 1 makes these entries its own, once, before it
 * reads its own pending entries; the ledger knows which of them are settled.
 */
#include "worker_internal.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "process.h"
#include "stats.h"
#include "stream.h"

#define PAGE 1000

/* The number in a consumer's name, if it is one of this pipeline's in this database; else 0. */
static int
worker_number(const PpWorker *w, const char *consumer)
{
	size_t prefix = strrchr(w->consumer, ':') - w->consumer + 1;

	return strncmp(consumer, w->consumer, prefix) == 0 ? atoi(consumer + prefix) : 0;
}

/* Claims a page of another consumer's pending entries. *claimed is how many; 0: none are left. */
static bool
claim_page(PpWorker *w, const char *consumer, int64 *claimed, PpRedisError *error)
{
	PpReply *reply;
	PpId *ids;

	pp_consume_begin_replies(w);
	pp_redis_send(w->redis, "XPENDING %s %s - + %d %s", w->def->stream, w->def->group, PAGE,
				  consumer);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
	*claimed = (int64) reply->len;
	if (reply->len == 0)
		return true;
	ids = MemoryContextAlloc(w->batches[0].cxt, reply->len * sizeof(PpId));
	for (size_t i = 0; i < reply->len; i++)
		if (!pp_stream_parse_pending(&reply->items[i], &ids[i], error))
			return false;
	pp_stream_send_claim(w->redis, w->def->stream, w->def->group, w->consumer, ids,
						 (int) reply->len);
	return pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error);
}

/* All pending entries of a consumer whose worker is not there any more. */
static bool
claim_all(PpWorker *w, const char *consumer, int number, PpRedisError *error)
{
	int64 total = 0;
	int64 claimed;

	/* Its last transaction may still be under way. */
	while (pp_proc_is_running(MyDatabaseId, w->def->name, number))
	{
		pp_process_sleep(50, PP_WAIT_PROCESS_EXIT);
		pp_worker_look_around(w);
	}
	do
	{
		if (!claim_page(w, consumer, &claimed, error))
			return false;
		total += claimed;
		pp_worker_look_around(w);
	} while (claimed > 0);
	ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: took over " INT64_FORMAT
						 " pending entries of worker %d, which it has no more",
						 w->def->name, pp_my_proc->worker, total, number)));
	return true;
}

/*
 * pp_consume_take_over
 *		Takes over what is pending for workers above the number that the pipeline has.
 */
bool
pp_consume_take_over(PpWorker *w, PpRedisError *error)
{
	char names[PP_MAX_WORKERS_PER_PIPELINE][PP_CONSUMER_LEN];
	int n = 0;
	PpReply *reply;

	pp_consume_begin_replies(w);
	pp_redis_send(w->redis, "XINFO CONSUMERS %s %s", w->def->stream, w->def->group);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
	{
		/* A user who may not ask, or a server that cannot tell, can still serve the stream. */
		if (error->class != PP_REDIS_CLASS_SETTING || !pp_redis_is_open(w->redis))
			return false;
		memset(error, 0, sizeof(*error));
		return true;
	}
	for (size_t i = 0; i < reply->len && n < PP_MAX_WORKERS_PER_PIPELINE; i++)
	{
		const PpReply *name = pp_reply_lookup(&reply->items[i], "name");
		int64 pending;

		if (pp_reply_is(name, PP_REPLY_STRING, 1) &&
			worker_number(w, name->str) > w->def->workers &&
			pp_reply_integer(pp_reply_lookup(&reply->items[i], "pending"), &pending) && pending > 0)
			strlcpy(names[n++], name->str, PP_CONSUMER_LEN);
	}
	for (int i = 0; i < n; i++)
		if (!claim_all(w, names[i], worker_number(w, names[i]), error))
			return false;
	return true;
}
