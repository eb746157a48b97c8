/*
 * consume.c
 *		A worker's work with a connection that works: read -> apply -> commit -> acknowledge.
 *
 * The XREADGROUP for the next batch and the XACK for what is durable travel in one write, and in a backlog
 * Redis works on them while the statement runs.  The read-ahead never blocks: a blocked one would hold
 * the XACK back.  Only with nothing in hand does the worker block, in Redis for a few seconds at a
 * time and here on its latch, with the last XACK sent before the blocking read.
 *
 * No transaction, snapshot or lock is held while it waits for Redis.  An XACK is sent only when the
 * commit is durable (durable.c): the commit itself does not wait for that, and under load the XACK
 * comes one turn later, when the WAL writer has flushed the commit meanwhile, or some turns later.
 *
 * Every function here that can fail returns false with *error filled, and the caller (worker.c)
 * closes the connection.
 */
#include "worker_internal.h"

#include "pgstat.h"
#include "utils/memutils.h"

#include "fault.h"
#include "held.h"
#include "owner.h"
#include "inflight.h"
#include "process.h"
#include "stats.h"
#include "stream.h"

/* How long Redis may hold an empty read: at its end it shows that a group was moved. */
#define BLOCK_MS        3000
#define ANSWER_MS       5000  /* how long we wait for an answer that is due */
#define RESCAN_MS       30000 /* pending entries are looked after at least that often */
#define MIN_REPLY_LIMIT ((size_t) 64 * 1024 * 1024)
#define MAX_REPLY_LIMIT ((size_t) 1200 * 1024 * 1024)

/*
 * No reply came.  Perhaps it was longer than Redis keeps for a client that is slow to take it
 * (client-output-buffer-limit), or than can be taken: the next one is to be shorter.
 */
static PpReply *
no_reply(PpWorker *w)
{
	/* Closed by ourselves, because a setting has changed: that says nothing. */
	if (pp_redis_error(w->redis)->class != PP_REDIS_CLASS_NONE)
		w->count = Max(1, w->count / 4);
	return NULL;
}

/*
 * The next reply; looks around meanwhile, but not before what has come is taken: the connection may be given up then.
 * NULL: the connection failed, or for timeout_ms nothing came.  A long reply may take longer, as long as it comes.
 * With 0 only what has come is taken, and that it is nothing is no failure.
 */
static PpReply *
receive(PpWorker *w, long timeout_ms, PpWaitEvent event)
{
	PpSteady end = pp_steady_in(timeout_ms);
	uint64 received = pp_redis_received(w->redis);
	PpReply *reply = NULL;

	for (;;)
	{
		PpRedisResult result = pp_redis_poll(w->redis, &reply);
		long left;

		if (result == PP_REDIS_REPLY)
			return reply;
		if (result == PP_REDIS_FAILED)
			return no_reply(w);
		if (pp_redis_received(w->redis) != received)
		{
			received = pp_redis_received(w->redis);
			end = pp_steady_in(timeout_ms);
		}
		left = pp_steady_left(end);
		if (left <= 0)
		{
			if (timeout_ms > 0)
				(void) pp_redis_fail(w->redis, PP_REDIS_CLASS_MOMENT, "redis_timeout",
									 "Redis did not answer within %ld ms", timeout_ms);
			return no_reply(w);
		}
		pp_worker_look_around(w);
		if (pp_redis_is_open(w->redis))
			pp_redis_wait(w->redis, left, event);
	}
}

/* Takes an error out of the connection, or out of an error reply. */
static bool
failed(PpWorker *w, const PpReply *reply, PpRedisError *error)
{
	if (reply == NULL)
	{
		*error = *pp_redis_error(w->redis);
		return true;
	}
	if (reply->type == PP_REPLY_ERROR)
	{
		pp_redis_error_reply(error, reply->str, reply->len);
		return true;
	}
	return false;
}

/*
 * Receives a batch, built where set_reply_target() has said.
 */
static bool
receive_batch(PpWorker *w, PpBatch *batch, long timeout_ms, PpWaitEvent event, PpRedisError *error)
{
	PpReply *reply = receive(w, timeout_ms, event);

	if (failed(w, reply, error) || !pp_stream_parse_read(reply, batch, error))
		return false;
	pp_pipe_read(w->pipe, batch);
	if (batch->n == 0)
		return true;
	batch->full = batch->n >= w->count;
	PP_FAULT("after_read");
	batch->look_up = !pp_held_take(w->pipe, (int) (batch - w->batches), batch->entries[0].id,
								   batch->entries[batch->n - 1].id);
	/* Which of them are settled is not known before they are looked up. */
	if (batch->look_up)
		pp_held_set_unacknowledged(w->pipe, -1);
	/*
	 * Large entries: fewer at a time from now on; and back to more only step by step, when the last
	 * failure is a while ago.
	 */
	w->count = (int) Min(Min(w->batch_size, w->backoff.attempts > 0 ? w->count : w->count * 2),
						 Max(w->batch_bytes / Max(batch->bytes / batch->n, 1), 1));
	return true;
}

/* Receives new entries. */
static bool
receive_new(PpWorker *w, PpBatch *batch, long timeout_ms, PpWaitEvent event, PpRedisError *error)
{
	if (!receive_batch(w, batch, timeout_ms, event, error))
		return false;
	if (batch->n > 0)
		pp_watch_delivered(w, batch->n, batch->entries[0].id, batch->entries[batch->n - 1].id);
	else
		pp_watch_delivered(w, 0, (PpId){0, 0}, (PpId){0, 0});
	return true;
}

/*
 * Replies are built in this batch's context from now on, which begins anew: the one place where
 * it is reset.  Only the other batch may be in hand, and the IDs of the batch that was here must be
 * kept (acknowledge.c).
 */
static void
set_reply_target(PpWorker *w, PpBatch *batch)
{
	MemoryContextReset(batch->cxt);
	batch->n = 0;
	pp_redis_reply_target(w->redis, batch->cxt,
						  w->count == 1 ? MAX_REPLY_LIMIT
										: Max(8 * w->batch_bytes, MIN_REPLY_LIMIT));
}

/*
 * Asks for new entries; and, as what the read begins from, whose group it is and where it stands: Redis
 * serves what comes in one write without a pause.  block_ms < 0 does not block.
 */
static void
send_read(PpWorker *w, int block_ms)
{
	pp_owner_send_check(w);
	pp_watch_send(w);
	pp_stream_send_read(w->redis, w->def->stream, w->def->group, w->consumer, NULL, w->count,
						block_ms);
}

/* For commands between two batches: their replies are kept until the next call. */
void
pp_consume_begin_replies(PpWorker *w)
{
	set_reply_target(w, &w->batches[0]);
}

/* The next reply, whatever it is; NULL with *error filled: the connection failed. */
PpReply *
pp_consume_receive_any(PpWorker *w, PpRedisError *error)
{
	PpReply *reply = receive(w, ANSWER_MS, PP_WAIT_REDIS_REPLY);

	if (reply == NULL)
		*error = *pp_redis_error(w->redis);
	return reply;
}

static bool
receive_replies(PpWorker *w, PpReply **replies, int n, PpRedisError *error)
{
	pp_redis_skim(w->redis, true);
	for (int i = 0; i < n; i++)
		if ((replies[i] = pp_consume_receive_any(w, error)) == NULL)
			return false;
	pp_redis_skim(w->redis, false);
	return true;
}

/* The replies to pp_stream_send_facts().  False with *error: Redis refused, or the connection failed. */
bool
pp_consume_receive_facts(PpWorker *w, PpStreamFacts *facts, PpRedisError *error)
{
	PpReply *replies[PP_STREAM_FACT_REPLIES];

	return receive_replies(w, replies, PP_STREAM_FACT_REPLIES, error) &&
		   pp_stream_parse_facts(replies, w->def->group, facts, error);
}

/* The replies to pp_stream_send_loose_facts(), likewise. */
bool
pp_consume_receive_loose_facts(PpWorker *w, PpStreamFacts *facts, PpRedisError *error)
{
	PpReply *replies[PP_STREAM_LOOSE_REPLIES];

	return receive_replies(w, replies, PP_STREAM_LOOSE_REPLIES, error) &&
		   pp_stream_parse_loose_facts(replies, w->def->group, facts, error);
}

/* The reply to such a command, which must be of this type. */
bool
pp_consume_receive(PpWorker *w, PpReplyType type, PpReply **reply, PpRedisError *error)
{
	*reply = receive(w, ANSWER_MS, PP_WAIT_REDIS_REPLY);
	if (failed(w, *reply, error))
		return false;
	if ((*reply)->type == type)
		return true;
	pp_redis_error_set(error, PP_REDIS_CLASS_MOMENT, "redis_protocol",
					   "a reply has a shape that was not expected");
	return false;
}

/* Settles a batch of entries that may be settled already, and acknowledges it. */
bool
pp_consume_settle(PpWorker *w, PpBatch *batch, PpRedisError *error)
{
	batch->look_up = true;
	pp_consume_apply(w, batch);
	pp_acks_send(w);
	return pp_acks_receive(w, error) && pp_mirror_letters(w, batch, error);
}

/*
 * Settles what this consumer has received before and not acknowledged, and what it takes over from
 * others: all pages of it.
 */
bool
pp_consume_pending(PpWorker *w, PpRedisError *error)
{
	PpId after = {0, 0};
	PpBatch *batch = &w->batches[0];

	/* Nothing may be taken from others, nor from a consumer of our name, when the group is not ours. */
	set_reply_target(w, batch);
	pp_owner_send_check(w);
	if (!pp_owner_receive_check(w, error) || !pp_take_over(w, error) ||
		!pp_watch_consumer(w, error))
		return false;
	for (;;)
	{
		set_reply_target(w, batch);
		pp_owner_send_check(w);
		pp_stream_send_read(w->redis, w->def->stream, w->def->group, w->consumer, &after, w->count,
							-1);
		if (!pp_owner_receive_check(w, error) ||
			!receive_batch(w, batch, ANSWER_MS, PP_WAIT_REDIS_REPLY, error))
			return false;
		if (batch->n == 0)
			break;
		pp_worker_well(w, false);
		after = batch->entries[batch->n - 1].id;
		/* After a rewind they lie above the mark, and are looked up all the same. */
		if (!pp_consume_settle(w, batch, error))
			return false;
		pp_worker_look_around(w);
	}
	pp_inflight_suspects_settled();
	w->recovered = true;
	w->rescan_at = pp_steady_in(RESCAN_MS);
	return true;
}

/*
 * Receives what came meanwhile into `next`.  A stream that has to be looked at is no reason to give up what was read
 * ahead: Redis may not have it any more by then.
 */
static bool
receive_ahead(PpWorker *w, PpBatch *next, bool read_ahead, PpRedisError *error)
{
	bool as_before;

	if (!pp_acks_receive(w, error))
		return false;
	if (!read_ahead)
		return true;
	if (!pp_owner_receive_check(w, error))
		return false;
	as_before = pp_watch_receive(w, error);
	return pp_redis_is_open(w->redis) &&
		   receive_new(w, next, ANSWER_MS, PP_WAIT_REDIS_REPLY, error) && as_before;
}

/*
 * One turn with `batch` in hand: applies it, acknowledges the last, and reads the next one, unless the hand is to be
 * empty then.  A connection that fails is no reason not to apply.  Of a batch that is full Redis has more, and works on
 * that meanwhile.  Any other one is applied first: it is in the table sooner, and more has come by the time of the read.
 */
static bool
turn_with_batch(PpWorker *w, PpBatch *batch, PpBatch *next, bool read_ahead, PpRedisError *error)
{
	bool ok;

	pp_worker_well(w, false);
	set_reply_target(w, next);
	if (!batch->full)
	{
		pp_consume_apply(w, batch);
		/* One that is to stop must acknowledge this, and not ask whose group it is by now. */
		pp_worker_look_around(w);
	}
	pp_acks_age(w);
	read_ahead = read_ahead && pp_redis_is_open(w->redis);
	if (read_ahead)
		send_read(w, -1);
	(void) pp_redis_flush(w->redis);
	w->reading_ahead = read_ahead;
	if (batch->full)
		pp_consume_apply(w, batch);
	ok = receive_ahead(w, next, read_ahead, error);
	w->reading_ahead = false;
	return ok && pp_mirror_letters(w, batch, error);
}

/*
 * One turn with nothing in hand: acknowledges, and blocks until there are entries or something else is due.  If the
 * stream has to be looked at, what Redis has given with that answer is not given up either.
 */
static bool
turn_idle(PpWorker *w, PpBatch *next, PpRedisError *error)
{
	int block_ms =
		(int) pp_chores_due_ms(w, pp_take_over_due_ms(w, (int) pp_watch_due_ms(w, BLOCK_MS)));

	pp_acks_send(w);
	set_reply_target(w, next);
	send_read(w, block_ms > 0 ? block_ms : -1);
	(void) pp_redis_flush(w->redis);
	if (!pp_acks_receive(w, error) || !pp_owner_receive_check(w, error))
		return false;
	if (!pp_watch_receive(w, error))
	{
		if (pp_redis_is_open(w->redis))
			(void) receive_new(w, next, 0, PP_WAIT_REDIS_REPLY, error);
		return false;
	}
	pp_worker_well(w, true);
	pgstat_report_stat(true);
	pp_process_activity(false, "waiting for entries");
	return receive_new(w, next, block_ms + ANSWER_MS, PP_WAIT_WORKER_IDLE, error);
}

/* With nothing in hand: acknowledges. False: that failed, or not all is durable yet. */
static bool
settle_up(PpWorker *w, PpRedisError *error)
{
	pp_acks_send(w);
	return pp_acks_receive(w, error) && w->ack_old.n == 0 && w->ack_new.n == 0;
}

static PpRedis *connection_in_use;

/* The next batch comes in while the statement runs. */
static void
take_in(void)
{
	pp_redis_take_in(connection_in_use);
}

/* Reads and applies until something fails, or pending entries are to be looked after. */
static void
take_turns(PpWorker *w, PpRedisError *error)
{
	int hand = 0;
	bool had_turn = false;
	bool ok = true;

	while (ok)
	{
		PpBatch *batch = &w->batches[hand];
		PpBatch *next = &w->batches[1 - hand];
		bool due;

		pp_worker_look_around(w);
		if (!pp_redis_is_open(w->redis))
		{
			*error = *pp_redis_error(w->redis); /* none, if a setting has changed */
			return;
		}
		pp_chores_run(w);
		if (pp_my_proc->worker == 1 && !pp_compact_run(w, error))
			return;
		due = had_turn && pp_take_over_is_due(w);
		/* Pending entries are to be looked after again. */
		if (batch->n == 0 && due && (settle_up(w, error) || error->class != PP_REDIS_CLASS_NONE))
		{
			w->recovered = false;
			return;
		}
		ok = batch->n > 0 ? turn_with_batch(w, batch, next, !due && pp_watch_can_wait(w), error)
						  : turn_idle(w, next, error);
		hand = 1 - hand;
		had_turn = true;
	}
}

/*
 * Reads and applies until something fails, then says what in *error; or until pending entries are
 * to be looked after, in which it takes turns with new ones.  Nothing is in hand then: Redis, when it is
 * asked again, may not have any more what was received.
 */
void
pp_consume(PpWorker *w, PpRedisError *error)
{
	connection_in_use = w->redis;
	pp_process_meanwhile = take_in;
	w->batches[0].n = 0;
	pp_acks_report(w);
	take_turns(w, error);
	for (int i = 0; i < lengthof(w->batches); i++)
		if (pp_held_is_in_hand(i))
			pp_consume_apply(w, &w->batches[i]);
}
