/*
 * handover.c
 *		Leaving a group that another pipeline owns from now on.
 *
 * What is pending for the consumers of this pipeline is of two kinds.  What it has settled, only its
 * own ledger knows: it is acknowledged, or else the new owner would apply it a second time.  The rest
 * stays pending, and a new owner on this server takes it over once this pipeline is fenced
 * (consumer.c); one elsewhere claims it as a foreign consumer's.
 *
 * Worker 1 does it while the others hold still, so nothing is in hand.
 */
#include "handover.h"

#include "owner_key.h"
#include "process.h"
#include "stats.h"
#include "stream_group.h"

#define PENDING_PAGE 1000

/* Leaves only those in the batch that are on record; as entries that are gone, because the ID decides. */
static void
keep_settled(PpApply *a, void *arg)
{
	PpBatch *batch = arg;
	int kept = 0;

	pp_ledger_lookup_batch(pp_apply_ledger(a), batch);
	for (int i = 0; i < batch->n; i++)
	{
		if (batch->entries[i].verdict != PP_VERDICT_DUPLICATE)
			continue;
		batch->entries[kept].id = batch->entries[i].id;
		batch->entries[kept++].verdict = PP_VERDICT_GONE;
	}
	batch->n = kept;
}

/* A page of XPENDING: those of our consumers, as a batch.  *last becomes its last ID. */
static bool
get_own_pending(PpWorker *w, PpBatch *batch, PpId *last, bool *more, PpRedisError *error)
{
	size_t prefix = strrchr(w->consumer, ':') - w->consumer + 1;
	PpReply *reply;

	pp_consume_begin_replies(w);
	pp_stream_send_pending(w->redis, w->def->stream, w->def->group, *last, PP_ID_MAX, PENDING_PAGE);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
	*more = reply->len == PENDING_PAGE;
	batch->entries = MemoryContextAllocZero(batch->cxt, Max(reply->len, 1) * sizeof(PpEntry));
	batch->n = 0;
	batch->bytes = 0;
	for (size_t i = 0; i < reply->len; i++)
	{
		PpPending line;

		if (!pp_stream_parse_pending_line(&reply->items[i], &line, error))
			return false;
		*last = line.id;
		if (line.consumer.len <= prefix || memcmp(line.consumer.data, w->consumer, prefix) != 0)
			continue;
		batch->entries[batch->n].id = line.id;
		batch->entries[batch->n++].nfields = -1;
	}
	return true;
}

/*
 * Acknowledges what is settled, however long that takes: a standby that has to confirm it may be away, and
 * what is pending still would be applied by the new owner.  False with no error: the connection was closed
 * meanwhile.
 */
static bool
acknowledge(PpWorker *w, PpBatch *batch, PpRedisError *error)
{
	if (!pp_consume_settle(w, batch, error))
		return false;
	while (w->ack_new.n > 0)
	{
		pp_process_sleep(100, PP_WAIT_WORKER_RETRY);
		pp_worker_look_around(w);
		pp_acks_send(w);
		if (!pp_acks_receive(w, error))
			return false;
	}
	return pp_redis_is_open(w->redis);
}

/*
 * pp_hand_over
 *		Acknowledges what is pending for this pipeline and settled by it.
 */
bool
pp_hand_over(PpWorker *w, PpRedisError *error)
{
	PpBatch *batch = &w->batches[0];
	PpId last = {0, 0};
	bool more = true;

	while (more)
	{
		if (!get_own_pending(w, batch, &last, &more, error))
		{
			/* No group, no stream: nothing is pending. */
			if (error->class != PP_REDIS_CLASS_STRUCTURE)
				return false;
			memset(error, 0, sizeof(*error));
			return true;
		}
		pp_worker_transact(w, keep_settled, batch);
		if (batch->n > 0 && !acknowledge(w, batch, error))
			return false;
	}
	return true;
}

/*
 * pp_hand_over_wake
 *		Has the new owner, if it is one of this server, take over what is left; after this pipeline is
 *		marked as fenced.  It may be waiting for entries in Redis, as that client.
 */
bool
pp_hand_over_wake(PpWorker *w, const char *owner, int64 client, PpRedisError *error)
{
	Oid dboid;
	const char *name = pp_owner_parse(owner, &dboid);
	PpPipe *pipe = name != NULL ? pp_pipe_find(dboid, name) : NULL;

	if (pipe == NULL || pipe == w->pipe)
		return true;
	pp_pipe_set_rescan(pipe, true);
	if (client == 0)
		return true;
	/* A user who may not do that: it looks within some seconds. */
	pp_redis_send(w->redis, "CLIENT UNBLOCK %lld", (long long) client);
	return pp_consume_receive_any(w, error) != NULL;
}
