/*
 * acknowledge.c
 *		The XACKs of what is committed.
 *
 * The IDs of a batch are sent when its commit is durable (durable.c): under load one turn later, when
 * the WAL writer has flushed it meanwhile, or some turns later, when the disk is slow.  Behind each
 * XACK travels the number of the batch, for the owner key (owner.c).
 */
#include "worker_internal.h"

#include "utils/memutils.h"

#include "durable.h"
#include "fault.h"
#include "held.h"
#include "owner.h"
#include "process.h"
#include "stats.h"
#include "stream.h"

/* When so many entries wait for the disk, the worker does: some full batches, and no more than an XACK takes well. */
#define MAX_BATCHES_BEHIND 8
#define MAX_ENTRIES_BEHIND 10000

/* Tells the audit how many entries are on record and pending still. */
void
pp_acks_report(PpWorker *w)
{
	bool known = w->recovered && w->acks_in_flight == 0;

	pp_held_set_unacknowledged(w->pipe, known ? w->ack_old.n + w->ack_new.n : -1);
}

/*
 * Queues the XACK of a batch, when it is durable.  Returns without it when this process is to stop
 * or the standby that has to confirm does not: what is not acknowledged comes again.
 */
static void
send_ack(PpWorker *w, PpAckList *list)
{
	if (list->n == 0 || !pp_durable_wait(list->lsn))
		return;
	if (w->acks_in_flight == 0)
		w->acks_since = pp_steady_now();
	pp_stream_send_ack(w->redis, w->def->stream, w->def->group, list->ids, list->n);
	pp_owner_send_sequence(w, list->sequence);
	w->acks_in_flight += 2;
	list->n = 0;
	pp_acks_report(w);
}

/* Queues the XACKs of all that is committed. */
void
pp_acks_send(PpWorker *w)
{
	send_ack(w, &w->ack_old);
	send_ack(w, &w->ack_new);
}

/*
 * Before a turn: queues the XACKs of what is durable.  The last batch's wait at least one turn more:
 * until then the WAL writer has flushed its commit, while the next statement runs.  If it has not yet
 * flushed what is older, all wait for another turn, however long the batch in hand takes.  A disk that is
 * too slow, or a synchronous standby that does not confirm, holds the worker up here, with its batches
 * pending.
 */
void
pp_acks_age(PpWorker *w)
{
	PpAckList empty;

	if (w->ack_old.n > 0 &&
		w->ack_old.n + w->ack_new.n < Min(MAX_BATCHES_BEHIND * w->count, MAX_ENTRIES_BEHIND) &&
		!pp_durable_is_reached(w->ack_old.lsn, synchronous_commit))
		return;
	for (;;)
	{
		send_ack(w, &w->ack_old);
		if (w->ack_old.n == 0)
			break;
		pp_process_sleep(100, PP_WAIT_WORKER_RETRY);
		pp_worker_look_around(w);
	}
	empty = w->ack_old;
	w->ack_old = w->ack_new;
	w->ack_new = empty;
}

/* Keeps the IDs of a batch that is committed, behind those that wait for the same commit or an earlier one. */
void
pp_acks_keep(PpWorker *w, const PpBatch *batch, XLogRecPtr lsn)
{
	PpAckList *list = &w->ack_new;

	if (list->size < list->n + batch->n)
	{
		list->size = list->n + batch->n;
		list->ids = list->ids == NULL ? MemoryContextAllocHuge(w->cxt, list->size * sizeof(PpId))
									  : repalloc_huge(list->ids, list->size * sizeof(PpId));
	}
	for (int i = 0; i < batch->n; i++)
		list->ids[list->n++] = batch->entries[i].id;
	list->lsn = lsn;
	list->sequence = pp_apply_ledger(w->apply)->sequence;
	pp_acks_report(w);
}

/*
 * Receives the replies to the XACKs.  A smaller number than was sent is no error: somebody else has
 * acknowledged, or the group is another one; what is not acknowledged comes again.  The number of the
 * batch, sent behind each, may be refused, as it is under maxmemory: one that is too low does no harm.
 */
bool
pp_acks_receive(PpWorker *w, PpRedisError *error)
{
	while (w->acks_in_flight > 0)
	{
		bool is_ack = w->acks_in_flight % 2 == 0;
		PpReply *reply = pp_consume_receive_any(w, error);

		if (reply == NULL)
			return false;
		if (reply->type == PP_REPLY_ERROR && is_ack)
		{
			pp_redis_error_reply(error, reply->str, reply->len);
			return false;
		}
		if (reply->type != PP_REPLY_ERROR && reply->type != PP_REPLY_INTEGER)
		{
			pp_redis_error_set(error, PP_REDIS_CLASS_MOMENT, "redis_protocol",
							   "the reply to XACK is not a number");
			return false;
		}
		w->acks_in_flight--;
		if (!is_ack)
			continue;
		pp_pipe_observe_since(w->pipe, PP_HIST_ACK, w->acks_since);
		pp_pipe_acknowledged(w->pipe);
		PP_FAULT("after_ack");
	}
	pp_acks_report(w);
	return true;
}
