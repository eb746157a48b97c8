/*
 * worker.c
 *		A worker of a pipeline: read -> apply -> commit -> acknowledge, in this order.
 *
 * The XREADGROUP for the next batch and the XACK for the last one travel in one write, and Redis
 * works on them while the statement runs.  The read-ahead never blocks: a blocked one would hold
 * the XACK back.  Only with nothing in hand does the worker block, in Redis for a few seconds at a
 * time and here on its latch, with the last XACK sent before the blocking read.
 *
 * No transaction, snapshot or lock is held while it waits for Redis.  An XACK is sent only when the
 * commit is durable (durable.c).
 *
 * Whatever goes wrong with the connection: it is closed, and what was delivered and not
 * acknowledged is read again from the consumer's own pending entries, all pages of it, before any
 * new entry is read.  The ledger tells which of them are settled.  Nothing is in hand then.
 */
#include "worker.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "apply.h"
#include "backoff.h"
#include "durable.h"
#include "event.h"
#include "guc.h"
#include "process.h"
#include "redis.h"
#include "stats.h"
#include "stream.h"

#define BLOCK_MS 5000		  /* how long Redis may hold an empty read */
#define ANSWER_MS 3000		  /* how much longer than that we wait for an answer */
#define CONNECT_MS 5000		  /* to connect and log in */
#define FAREWELL_MS 500		  /* for the last XACK when stopping */
#define RESCAN_MS 30000		  /* own pending entries again, while idle */
#define BACKOFF_FIRST_MS 100
#define BACKOFF_CAP_MS 5000
#define BACKOFF_FORGET_MS 10000
#define MIN_REPLY_LIMIT ((size_t) 64 * 1024 * 1024)
#define MAX_REPLY_LIMIT ((size_t) 1200 * 1024 * 1024)

typedef struct Worker
{
	MemoryContext cxt;
	PpExtension ext;
	PpPipeline *def;
	PpPipe	   *pipe;
	PpApply    *apply;
	PpRedis    *redis;
	PpRedisUrl	url;
	PpBackoff	backoff;
	char		consumer[PP_CONSUMER_LEN];
	PpBatch		batches[2]; /* one in hand, one being read; see set_reply_target() */
	int			batch_size;
	size_t		batch_bytes;
	int			count;		/* entries to ask for, fewer when they are large */
	PpId	   *ack;		/* durable, XACK not sent yet; in the context of their batch */
	int			ack_count;
	bool		ack_in_flight; /* an XACK was sent, its reply has not come */
	TimestampTz failed_at;	/* the last failure that was backed off from */
	bool		made_before; /* the ledger has entries of this pipeline: the group existed */
	bool		group_open; /* open_group() is done */
	bool		recovered;	/* own pending entries are done since the last connect */
	TimestampTz recovered_at;
} Worker;

/* Nobody else may be waiting for what is left: the supervisor asks for a reason only. */
static void
leave(const char *code, const char *reason)
{
	pp_report_state(PP_STATE_STOPPED, code, reason, NULL);
	proc_exit(0);
}

/* Sends the last XACK, if there is time, and ends the process. */
static void
stop(Worker *w)
{
	PpReply    *reply;

	if (w->redis != NULL && pp_redis_is_open(w->redis) && w->ack_count > 0)
	{
		pp_stream_send_ack(w->redis, w->def->stream, w->def->group, w->ack, w->ack_count);
		while (pp_redis_outstanding(w->redis) > 0 &&
			   pp_redis_receive(w->redis, &reply, FAREWELL_MS, PP_WAIT_REDIS_REPLY) ==
			   PP_REDIS_REPLY)
			;
	}
	leave("requested", "");
}

static void
apply_settings(Worker *w)
{
	w->batch_size = pp_pipeline_option_int(w->def, "batch_size", pp_guc_batch_size);
	w->batch_bytes = (size_t) pp_guc_batch_bytes * 1024;
	w->count = w->count == 0 ? w->batch_size : Min(w->count, w->batch_size);
}

/* Closes the connection; what was delivered on it is read again as own pending entries. */
static void
disconnect(Worker *w)
{
	pp_redis_close(w->redis);
	w->recovered = false;
	w->ack_count = 0;
	w->ack_in_flight = false;
}

/* What has to be looked at whenever the latch was set, and between two batches. */
static void
look_around(Worker *w)
{
	pp_process_interrupts();
	if (pp_proc_must_stop())
		stop(w);
	if (pp_process_reload())
	{
		PpRedisUrl	url;

		apply_settings(w);
		pp_guc_redis_url(&url);
		if (w->redis != NULL && memcmp(&url, &w->url, sizeof(url)) != 0)
			disconnect(w);
	}
}

/* Waits before the next attempt. */
static void
back_off(Worker *w)
{
	int			ms = pp_backoff_next(&w->backoff);
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);

	w->failed_at = end;
	pp_report_next_attempt(end);
	for (;;)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		if (left <= 0)
			return;
		pp_process_sleep(left, PP_WAIT_WORKER_RETRY);
		look_around(w);
	}
}

/* It works. The back-off forgets a failure only after a while: what fails again and again, with a
 * moment of success between, is to be tried less and less often all the same. */
static void
well(Worker *w, bool idle)
{
	if (w->backoff.attempts > 0 &&
		TimestampDifferenceExceeds(w->failed_at, GetCurrentTimestamp(), BACKOFF_FORGET_MS))
		pp_backoff_reset(&w->backoff);
	pp_report_state(idle ? PP_STATE_IDLE : PP_STATE_RUNNING, "", "", NULL);
}

/* Says what is wrong with Redis, closes the connection, and waits. */
static void
redis_failed(Worker *w, const PpRedisError *error)
{
	PpRedisError copy = *error;

	disconnect(w);
	if (strcmp(copy.code, "redis_reply_too_large") == 0)
		w->count = Max(1, w->count / 4);
	pp_report_error(w->pipe, pp_redis_error_sqlstate(&copy), copy.message);
	pp_report_state(copy.class == PP_REDIS_CLASS_SETTING ? PP_STATE_FAILED : PP_STATE_RETRYING,
					copy.code, copy.message, pp_redis_error_hint(&copy));
	pp_process_activity(false, "waiting to connect to Redis again");
	back_off(w);
}

/* Connects and logs in. */
static bool
connect_redis(Worker *w)
{
	TimestampTz end;
	PpReply    *reply;
	bool		again = w->url.display[0] != '\0';

	pp_guc_redis_url(&w->url);
	pp_process_activity(false, "connecting to Redis");
	if (!pp_redis_start(w->redis, &w->url))
		return false;
	end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CONNECT_MS);
	while (!pp_redis_is_open(w->redis))
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);

		if (pp_redis_poll(w->redis, &reply) == PP_REDIS_FAILED)
			return false;
		if (pp_redis_is_open(w->redis))
			break;
		if (left <= 0)
		{
			(void) pp_redis_fail(w->redis, PP_REDIS_CLASS_MOMENT, "redis_timeout",
								 "Redis at %s did not answer the log-in within %d ms",
								 w->url.display, CONNECT_MS);
			return false;
		}
		pp_redis_wait(w->redis, left, PP_WAIT_REDIS_CONNECT);
		look_around(w);
	}
	if (again)
		pp_count(w->pipe, PP_COUNT_RECONNECTS, 1);
	pp_report_redis(w->url.display, pp_redis_role(w->redis), pp_redis_version(w->redis),
					pp_redis_client_id(w->redis));
	return true;
}

/* The next reply, within timeout_ms; looks around meanwhile. NULL: the connection failed. */
static PpReply *
receive(Worker *w, long timeout_ms, PpWaitEvent event)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);
	PpReply    *reply = NULL;

	for (;;)
	{
		PpRedisResult result = pp_redis_poll(w->redis, &reply);
		long		left;

		if (result == PP_REDIS_REPLY)
			return reply;
		if (result == PP_REDIS_FAILED)
			return NULL;
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (left <= 0)
		{
			(void) pp_redis_fail(w->redis, PP_REDIS_CLASS_MOMENT, "redis_timeout",
								 "Redis did not answer within %ld ms", timeout_ms);
			return NULL;
		}
		pp_redis_wait(w->redis, left, event);
		look_around(w);
	}
}

/* Takes an error out of the connection, or out of an error reply. */
static bool
failed(Worker *w, const PpReply *reply, PpRedisError *error)
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

/* Queues the XACK of what is committed and durable. */
static void
send_ack(Worker *w)
{
	if (w->ack_count == 0)
		return;
	pp_stream_send_ack(w->redis, w->def->stream, w->def->group, w->ack, w->ack_count);
	w->ack_count = 0;
	w->ack_in_flight = true;
}

/*
 * Receives the reply to the XACK.  A smaller number than was sent is no error: somebody else has
 * acknowledged, or the group is another one; what is not acknowledged comes again.
 */
static bool
receive_ack(Worker *w, PpRedisError *error)
{
	PpReply    *reply;

	if (!w->ack_in_flight)
		return true;
	reply = receive(w, BLOCK_MS, PP_WAIT_REDIS_REPLY);
	if (failed(w, reply, error))
		return false;
	if (reply->type != PP_REPLY_INTEGER)
	{
		pp_redis_error_set(error, PP_REDIS_CLASS_MOMENT, "redis_protocol",
						   "the reply to XACK is not a number");
		return false;
	}
	w->ack_in_flight = false;
	pp_pipe_acknowledged(w->pipe);
	return true;
}

/*
 * Receives a batch, built where set_reply_target() has said.
 */
static bool
receive_batch(Worker *w, PpBatch *batch, long timeout_ms, PpWaitEvent event, PpRedisError *error)
{
	PpReply    *reply = receive(w, timeout_ms, event);

	if (failed(w, reply, error) || !pp_stream_parse_read(reply, batch, error))
		return false;
	if (batch->n == 0)
		return true;
	pp_pipe_read(w->pipe, batch);
	/* Large entries: fewer at a time from now on. */
	w->count = (int) Min((size_t) w->batch_size,
						 Max(w->batch_bytes / Max(batch->bytes / batch->n, 1), 1));
	return true;
}

/*
 * Replies are built in this batch's context from now on, which begins anew: the one place where
 * it is reset.  Only the other batch may be in hand, and the IDs of the batch that was here must
 * be on their way.
 */
static void
set_reply_target(Worker *w, PpBatch *batch)
{
	MemoryContextReset(batch->cxt);
	batch->n = 0;
	pp_redis_reply_target(w->redis, batch->cxt,
						  w->count == 1 ? MAX_REPLY_LIMIT : Max(8 * w->batch_bytes, MIN_REPLY_LIMIT));
}

/* Normalizes and hashes the entries of a batch that was just read. */
static void
normalize(Worker *w, PpBatch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->cxt);

	for (int i = 0; i < batch->n; i++)
	{
		batch->entries[i].hash = pp_event_hash(&batch->entries[i]);
		pp_event_normalize(&batch->entries[i], w->def->event_types);
	}
	MemoryContextSwitchTo(old);
}

static void
count_result(Worker *w, const PpBatch *batch, const PpApplyResult *r)
{
	pp_count(w->pipe, PP_COUNT_APPLIED, r->applied);
	pp_count(w->pipe, PP_COUNT_CONFLICTED, r->conflicted);
	pp_count(w->pipe, PP_COUNT_FILTERED, r->filtered);
	pp_count(w->pipe, PP_COUNT_DEDUPLICATED, r->duplicates);
	pp_count(w->pipe, PP_COUNT_DEAD, r->dead);
	pp_count(w->pipe, PP_COUNT_LOST, r->lost);
	pp_count(w->pipe, PP_COUNT_BATCHES, 1);
	pp_pipe_applied(w->pipe, batch->entries[batch->n - 1].id);
}

/* Says why a batch could not be applied, and waits. */
static void
apply_failed(Worker *w, PpOutcome outcome, const PpEntryError *error)
{
	PpState		state = outcome == PP_OUTCOME_PIPELINE ? PP_STATE_FAILED : PP_STATE_RETRYING;
	char		code[PP_REASON_CODE_LEN];

	snprintf(code, sizeof(code), "sqlstate_%s", unpack_sql_state(error->sqlstate));
	pp_report_error(w->pipe, error->sqlstate, error->message);
	pp_report_state(state, code, error->message, error->hint);
	pp_process_activity(false, "waiting to apply a batch again");
	back_off(w);
}

/*
 * Settles all of a batch, however long it takes, and leaves its IDs to be acknowledged: when this
 * returns, they are durable.
 */
static void
apply_batch(Worker *w, PpBatch *batch, bool look_up)
{
	normalize(w, batch);
	pp_report_batch(batch);
	pp_process_activity(true, "applying a batch");
	for (;;)
	{
		PpApplyResult result;
		PpOutcome	outcome = pp_apply_batch(w->apply, batch, look_up, &result);

		count_result(w, batch, &result);
		if (outcome == PP_OUTCOME_GONE)
			leave("extension_dropped", "the extension was dropped");
		if (outcome == PP_OUTCOME_DONE)
		{
			while (!pp_durable_wait(result.lsn))
				look_around(w);
			break;
		}
		apply_failed(w, outcome, result.error);
	}
	pgstat_report_stat(false);
	pp_report_batch(NULL);
	w->ack = MemoryContextAlloc(batch->cxt, batch->n * sizeof(PpId));
	for (int i = 0; i < batch->n; i++)
		w->ack[i] = batch->entries[i].id;
	w->ack_count = batch->n;
}

/* XGROUP CREATE: from the start that was asked for if it never was there, else from the beginning,
 * where the ledger knows what is settled. */
static bool
create_group(Worker *w, PpRedisError *error)
{
	char	   *start = pp_pipeline_option(w->def, "start_id");
	PpReply    *reply;

	set_reply_target(w, &w->batches[0]);
	pp_stream_send_create_group(w->redis, w->def->stream, w->def->group,
								w->made_before || start == NULL ? "0" : start);
	reply = receive(w, BLOCK_MS, PP_WAIT_REDIS_REPLY);
	if (failed(w, reply, error) && strcmp(error->code, "redis_busygroup") != 0)
		return false;
	if (reply->type != PP_REPLY_ERROR)
		ereport(LOG,
				(errmsg("postpipe pipeline \"%s\", worker %d: made consumer group \"%s\" of "
						"stream \"%s\"",
						w->def->name, pp_my_proc->worker, w->def->group, w->def->stream)));
	memset(error, 0, sizeof(*error));
	w->made_before = true;
	return true;
}

static bool
get_facts(Worker *w, PpStreamFacts *facts, PpRedisError *error)
{
	PpReply    *replies[PP_STREAM_FACT_REPLIES];

	set_reply_target(w, &w->batches[0]);
	pp_stream_send_facts(w->redis, w->def->stream, w->def->group);
	for (int i = 0; i < PP_STREAM_FACT_REPLIES; i++)
		if ((replies[i] = receive(w, BLOCK_MS, PP_WAIT_REDIS_REPLY)) == NULL)
		{
			*error = *pp_redis_error(w->redis);
			return false;
		}
	return pp_stream_parse_facts(replies, w->def->group, facts, error);
}

/*
 * Before the first entry of an epoch is read: makes the group where it is missing, and notes how
 * many entries of the stream are none of ours to account for.  Worker 1 does it, the others wait.
 */
static bool
open_group(Worker *w, PpRedisError *error)
{
	PpStreamFacts facts;
	PpEntryError *sql_error;
	PpOutcome	outcome;
	int64		base = -1;

	while (pp_my_proc->worker > 1 && !w->pipe->opened)
	{
		pp_process_sleep(50, PP_WAIT_WORKER_IDLE);
		look_around(w);
	}
	if (pp_my_proc->worker > 1)
		return true;
	if (!get_facts(w, &facts, error))
		return false;
	if (!facts.group_exists && (!create_group(w, error) || !get_facts(w, &facts, error)))
		return false;
	if (facts.added >= 0 && facts.undelivered >= 0 && facts.pending >= 0)
		base = facts.added - facts.undelivered - facts.pending;
	while (!pp_apply_base_known(w->apply) &&
		   (outcome = pp_apply_set_base(w->apply, base, &sql_error)) != PP_OUTCOME_DONE)
	{
		if (outcome == PP_OUTCOME_GONE)
			leave("extension_dropped", "the extension was dropped");
		apply_failed(w, outcome, sql_error);
	}
	w->pipe->opened = true;
	return true;
}

/* Settles what this consumer has received before and not acknowledged: all pages of it. */
static bool
recover_own(Worker *w, PpRedisError *error)
{
	PpId		after = {0, 0};
	PpBatch    *batch = &w->batches[0];

	for (;;)
	{
		set_reply_target(w, batch);
		pp_stream_send_read(w->redis, w->def->stream, w->def->group, w->consumer, &after, w->count,
							-1);
		if (!receive_batch(w, batch, BLOCK_MS, PP_WAIT_REDIS_REPLY, error))
			return false;
		if (batch->n == 0)
			break;
		batch->redelivered = true;
		well(w, false);
		after = batch->entries[batch->n - 1].id;
		apply_batch(w, batch, true);
		send_ack(w);
		if (!receive_ack(w, error))
			return false;
		look_around(w);
	}
	w->recovered = true;
	w->recovered_at = GetCurrentTimestamp();
	return true;
}

/*
 * One turn with `batch` in hand: asks for the next one and acknowledges the last, applies, and
 * receives what came meanwhile into `next`.
 */
static bool
turn_with_batch(Worker *w, PpBatch *batch, PpBatch *next, PpRedisError *error)
{
	bool		look_up = !pp_pipe_receive(w->pipe, batch->entries[0].id,
										   batch->entries[batch->n - 1].id);

	send_ack(w);
	set_reply_target(w, next);
	pp_stream_send_read(w->redis, w->def->stream, w->def->group, w->consumer, NULL, w->count, -1);
	(void) pp_redis_flush(w->redis);
	well(w, false);
	apply_batch(w, batch, look_up);
	if (!receive_ack(w, error))
		return false;
	return receive_batch(w, next, BLOCK_MS, PP_WAIT_REDIS_REPLY, error);
}

/* One turn with nothing in hand: acknowledges, and blocks until there are entries. */
static bool
turn_idle(Worker *w, PpBatch *next, PpRedisError *error)
{
	send_ack(w);
	set_reply_target(w, next);
	pp_stream_send_read(w->redis, w->def->stream, w->def->group, w->consumer, NULL, w->count,
						BLOCK_MS);
	(void) pp_redis_flush(w->redis);
	if (!receive_ack(w, error))
		return false;
	well(w, true);
	pgstat_report_stat(true);
	pp_process_activity(false, "waiting for entries");
	return receive_batch(w, next, BLOCK_MS + ANSWER_MS, PP_WAIT_WORKER_IDLE, error);
}

/* Reads and applies until something fails, then says what in *error. */
static void
consume(Worker *w, PpRedisError *error)
{
	int			hand = 0;

	w->batches[0].n = 0;
	for (;;)
	{
		PpBatch    *batch = &w->batches[hand];
		PpBatch    *next = &w->batches[1 - hand];
		bool		ok;

		look_around(w);
		if (!pp_redis_is_open(w->redis))
			return;				/* a setting has changed */
		if (batch->n == 0 && w->ack_count == 0 &&
			TimestampDifferenceExceeds(w->recovered_at, GetCurrentTimestamp(), RESCAN_MS))
		{
			w->recovered = false;
			return;
		}
		ok = batch->n > 0 ? turn_with_batch(w, batch, next, error) : turn_idle(w, next, error);
		if (!ok)
			return;
		hand = 1 - hand;
	}
}

/* Loads the definition and opens the ledger, in the end. */
static void
open_pipeline(Worker *w)
{
	MemoryContext old = MemoryContextSwitchTo(w->cxt);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(w->cxt);
	if (pp_extension_lookup(&w->ext))
		w->def = pp_pipeline_get(&w->ext, pp_my_proc->pipeline);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	if (w->def == NULL)
		leave("dropped", "the pipeline does not exist any more");
	w->apply = pp_apply_create(w->cxt, &w->ext, w->def, pp_my_proc->worker);
	apply_settings(w);
}

static void
set_option(const Worker *w, const char *setting, const char *unset)
{
	const char *value = pp_pipeline_option(w->def, setting);

	if (value == NULL)
		value = unset;
	if (value != NULL)
		SetConfigOption(setting, value, PGC_SUSET, PGC_S_SESSION);
}

/* Settings that a role or a database could have changed, and those of the pipeline. */
static void
fix_session(Worker *w)
{
	SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_deferrable", "off", PGC_SUSET, PGC_S_SESSION);
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_SESSION);
	set_option(w, "lock_timeout", NULL);
	set_option(w, "synchronous_commit", NULL);
}

/* Opens the ledger and the target; tries again until both are there. */
static void
open_apply(Worker *w)
{
	PpEntryError *error;
	PpId		mark = {0, 0};
	PpOutcome	outcome;

	MemoryContextSwitchTo(w->batches[0].cxt);
	while ((outcome = pp_apply_open(w->apply, &mark, &error)) != PP_OUTCOME_DONE)
	{
		if (outcome == PP_OUTCOME_GONE)
			leave("extension_dropped", "the extension was dropped");
		apply_failed(w, outcome, error);
		MemoryContextReset(w->batches[0].cxt);
	}
	MemoryContextSwitchTo(w->cxt);
	w->made_before = !pp_id_is_zero(mark);
	(void) pp_pipe_receive(w->pipe, mark, mark);
	StartTransactionCommand();
	pp_report_consumer(w->consumer, GetUserNameFromId(pp_apply_role(w->apply), true));
	CommitTransactionCommand();
}

static void
set_up(Worker *w)
{
	w->cxt = AllocSetContextCreate(TopMemoryContext, "postpipe worker", ALLOCSET_DEFAULT_SIZES);
	w->pipe = &pp_shared->pipes[pp_my_proc->pipe_no];
	pp_backoff_init(&w->backoff, BACKOFF_FIRST_MS, BACKOFF_CAP_MS);
	for (int i = 0; i < 2; i++)
		w->batches[i].cxt = AllocSetContextCreate(w->cxt, "postpipe batch", ALLOCSET_DEFAULT_SIZES);
	snprintf(w->consumer, sizeof(w->consumer), "postpipe:" UINT64_FORMAT ":%u:%s:%d",
			 GetSystemIdentifier(), MyDatabaseId, pp_my_proc->pipeline, pp_my_proc->worker);
	open_pipeline(w);
	fix_session(w);
	w->redis = pp_redis_create(w->cxt, w->consumer);
	MemoryContextSwitchTo(w->cxt);
	open_apply(w);
}

/* Connected and with nothing in hand: consumes until something fails. */
static void
serve(Worker *w)
{
	PpRedisError error = {0};

	if (!pp_redis_is_open(w->redis) && !connect_redis(w))
	{
		redis_failed(w, pp_redis_error(w->redis));
		return;
	}
	if (!w->group_open)
		w->group_open = open_group(w, &error);
	if (w->group_open && !w->recovered && recover_own(w, &error))
		pp_report_memory();
	if (w->recovered)
		consume(w, &error);
	if (error.class == PP_REDIS_CLASS_NONE)
		return;
	/* The group has vanished: it is made again, if that is all. */
	if (strcmp(error.code, "redis_nogroup") != 0 || !create_group(w, &error))
		redis_failed(w, &error);
	w->recovered = false;
}

/* The main function; main_arg is the number of the slot. */
void
postpipe_worker_main(Datum main_arg)
{
	static Worker worker; /* static: PG_TRY must not lose it */

	if (!pp_process_start(main_arg, pp_shared->procs[DatumGetInt32(main_arg)].dboid, true))
		proc_exit(0);
	pp_report_state(PP_STATE_STARTING, "", "", NULL);
	PG_TRY();
	{
		set_up(&worker);
		for (;;)
			serve(&worker);
	}
	PG_CATCH();
	{
		/* Not expected: say so where it can be seen; the supervisor starts us again. */
		ErrorData  *edata;

		MemoryContextSwitchTo(TopMemoryContext);
		edata = CopyErrorData();
		pp_report_error(worker.pipe, edata->sqlerrcode, edata->message);
		PG_RE_THROW();
	}
	PG_END_TRY();
}
