/*
 * worker.c
 *		A worker of a pipeline, as a process: set-up, the connection, the end.
 *
 * What it does with a connection that works is in consume.c: read -> apply -> commit -> acknowledge.
 * What it says and how long it waits when something has failed is in worker_failure.c.
 *
 * Whatever goes wrong with the connection: it is closed, what was received is settled, and what was
 * delivered and not acknowledged is read again from the consumer's own pending entries, all pages of it,
 * before any new entry is read.  The ledger tells which of them are settled.
 */
#include "worker.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "consumer.h"
#include "fault.h"
#include "guc.h"
#include "held.h"
#include "inflight.h"
#include "owner.h"
#include "owner_key.h"
#include "process.h"
#include "stats.h"
#include "worker_internal.h"

#define CONNECT_MS       5000 /* to connect and log in */
#define FAREWELL_MS      500  /* for the last XACK when stopping */
#define BACKOFF_FIRST_MS 100
#define BACKOFF_CAP_MS   5000
#define NO_GROUP_MS      1000 /* a group that vanishes more often than that is a failure */

/* Ends the process, saying why. */
PP_NORETURN static void
leave(const char *code, const char *reason)
{
	pp_report_state(PP_STATE_STOPPED, code, reason, NULL);
	proc_exit(0);
}

/*
 * The definition as it stands; NULL when it is dropped, or the extension.  In a transaction, to which
 * it leaves an active snapshot.
 */
static PpPipeline *
read_definition(PpExtension *ext, const char *pipeline)
{
	bool created = pp_extension_lock(ext);

	PushActiveSnapshot(GetTransactionSnapshot());
	return created ? pp_pipeline_get(ext, pipeline) : NULL;
}

/* Is the pipeline dropped, or the extension? */
static bool
is_gone(PpWorker *w)
{
	PpExtension ext;
	bool gone;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	gone = read_definition(&ext, w->def->name) == NULL;
	PopActiveSnapshot();
	CommitTransactionCommand();
	return gone;
}

/* Acknowledges what is committed, if there is time, and ends the process. */
void
pp_worker_stop(PpWorker *w, const char *code, const char *reason)
{
	PpReply *reply;

	if (w->redis != NULL && pp_redis_is_open(w->redis))
	{
		pp_acks_send(w);
		while (w->acks_in_flight > 0 && pp_redis_outstanding(w->redis) > 0 &&
			   pp_redis_receive(w->redis, &reply, FAREWELL_MS, PP_WAIT_REDIS_REPLY) ==
				   PP_REDIS_REPLY)
			;
		if (pp_my_proc->worker == 1 && is_gone(w))
			pp_owner_give_back(w);
		/* Before the slot is free, so that Redis gives a paused pipeline nothing. */
		pp_redis_close(w->redis);
	}
	leave(code, reason);
}

/* A transaction was not begun, because the definition is not the one that this worker has loaded. */
void
pp_worker_outdated(PpWorker *w)
{
	pp_worker_stop(w, "definition_changed", "the definition has changed or is gone");
}

static void
apply_settings(PpWorker *w)
{
	w->batch_size = pp_pipeline_option_int(w->def, "batch_size", pp_guc_batch_size);
	w->batch_bytes =
		(size_t) pp_pipeline_option_kb(w->def, "batch_bytes", pp_guc_batch_bytes) * 1024;
	w->count = w->count == 0 ? w->batch_size : Min(w->count, w->batch_size);
	pp_take_over_configure(w);
	pp_chores_configure(w);
	pp_compact_configure(w);
}

/*
 * What was delivered and not acknowledged is read again as own pending entries; before that, the
 * stream is looked at as a whole.
 */
static void
begin_anew(PpWorker *w)
{
	w->recovered = false;
	w->group_open = false;
	w->ack_old.n = w->ack_new.n = 0;
	pp_pipe_close(w->pipe);
}

void
pp_worker_disconnect(PpWorker *w)
{
	pp_redis_close(w->redis);
	w->acks_in_flight = 0;
	begin_anew(w);
}

/* What has to be looked at whenever the latch was set, and between two batches. */
void
pp_worker_look_around(PpWorker *w)
{
	pp_process_interrupts();
	if (pp_proc_must_stop())
		pp_worker_stop(w, "requested", "");
	if (pp_process_reload())
	{
		apply_settings(w);
		w->reloaded = true;
	}
	if (w->reading_ahead)
		return; /* however long the batch in hand takes, or fails */
	if (w->reloaded)
	{
		PpRedisUrl url;

		w->reloaded = false;
		(void) pp_pipeline_redis(w->def, &url);
		if (w->redis != NULL && memcmp(&url, &w->url, sizeof(url)) != 0)
			pp_worker_disconnect(w);
	}
	/* Another worker wants all to hold still: settle what is in hand, and read no more. */
	if (w->group_open && pp_pipe_opening(w->pipe) == 0)
		pp_worker_disconnect(w);
}

/* Says once that Redis may throw the stream away. */
static void
warn_of_eviction(const PpRedis *redis)
{
	static bool warned = false;
	bool evicts = pp_redis_eviction(redis)[0] != '\0';

	if (evicts && !warned && pp_my_proc->worker == 1)
		ereport(WARNING,
				(errmsg("postpipe pipeline \"%s\": Redis may evict the stream, with all that "
						"was not read: its maxmemory-policy is %s",
						pp_my_proc->pipeline, pp_redis_eviction(redis)),
				 errhint("Set it to noeviction, or to one of the volatile policies.")));
	warned = evicts;
}

/* Connects and logs in. */
static bool
connect_redis(PpWorker *w)
{
	PpSteady end;
	PpReply *reply;
	const char *why = pp_pipeline_redis(w->def, &w->url);

	if (why != NULL)
	{
		/* What has changed since may be none of its own, as who is a member of a role: it looks again. */
		pp_wake_supervisor(MyDatabaseId);
		(void) pp_redis_fail(w->redis, PP_REDIS_CLASS_SETTING, "redis_server", "%s", why);
		return false;
	}
	PP_FAULT("at_connect");
	pp_process_activity(false, "connecting to Redis");
	if (!pp_redis_start(w->redis, &w->url))
		return false;
	end = pp_steady_in(CONNECT_MS);
	while (!pp_redis_is_open(w->redis))
	{
		long left = pp_steady_left(end);

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
		pp_worker_look_around(w);
	}
	if (w->was_connected)
		pp_count(w->pipe, PP_COUNT_RECONNECTS, 1);
	w->was_connected = true;
	pp_report_redis(w->url.display, pp_redis_role(w->redis), pp_redis_version(w->redis),
					pp_redis_client_id(w->redis));
	warn_of_eviction(w->redis);
	return true;
}

static void
set_option(const PpWorker *w, const char *setting, const char *unset)
{
	const char *value = pp_pipeline_option(w->def, setting);

	if (value == NULL)
		value = unset;
	if (value != NULL)
		SetConfigOption(setting, value, PGC_SUSET, PGC_S_SESSION);
}

/* Settings that a role or a database could have changed, and those of the pipeline. In a transaction. */
static void
fix_session(PpWorker *w)
{
	SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_SESSION);
	SetConfigOption("default_transaction_deferrable", "off", PGC_SUSET, PGC_S_SESSION);
	SetConfigOption("search_path", PP_SAFE_PATH, PGC_SUSET, PGC_S_SESSION);
	pp_guc_set_styles();
	/* Redis speaks UTF-8; a conversion can be found only in a transaction, and is kept from then on. */
	SetConfigOption("client_encoding", "UTF8", PGC_USERSET, PGC_S_SESSION);
	set_option(w, "lock_timeout", NULL);
	set_option(w, "synchronous_commit", NULL);
}

/* Loads the definition and opens the ledger, in the end. */
static void
open_pipeline(PpWorker *w)
{
	MemoryContext old = MemoryContextSwitchTo(w->cxt);

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(w->cxt);
	w->def = read_definition(&w->ext, pp_my_proc->pipeline);
	if (w->def == NULL)
		leave("dropped", "the pipeline does not exist any more");
	fix_session(w);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(old);
	w->apply = pp_apply_create(w->cxt, &w->ext, w->def, pp_my_proc->worker);
	apply_settings(w);
}

/*
 * pp_worker_transact
 *		Does `work` in a transaction, tried again until it succeeds.  Returns true when it did at once.
 */
bool
pp_worker_transact(PpWorker *w, PpWork work, void *arg)
{
	MemoryContext old = MemoryContextSwitchTo(w->error_cxt);
	PpEntryError *error;
	PpOutcome outcome;
	bool at_once = true;

	while ((outcome = pp_apply_transaction(w->apply, work, arg, true, &error)) != PP_OUTCOME_DONE)
	{
		if (outcome == PP_OUTCOME_GONE)
			pp_worker_outdated(w);
		pp_worker_apply_failed(w, outcome, error);
		MemoryContextReset(w->error_cxt);
		at_once = false;
	}
	MemoryContextSwitchTo(old);
	return at_once;
}

/*
 * pp_worker_try
 *		Does `work` in a transaction, once: what is done again at some time anyway.  Returns false when it
 *		failed, which the pipeline's last error says.
 */
bool
pp_worker_try(PpWorker *w, PpWork work, void *arg)
{
	MemoryContext old = MemoryContextSwitchTo(w->error_cxt);
	PpEntryError *error;
	PpOutcome outcome = pp_apply_transaction(w->apply, work, arg, true, &error);

	if (outcome == PP_OUTCOME_GONE)
		pp_worker_outdated(w);
	if (outcome != PP_OUTCOME_DONE)
		pp_report_error(w->pipe, error->sqlstate, error->message);
	MemoryContextReset(w->error_cxt);
	MemoryContextSwitchTo(old);
	return outcome == PP_OUTCOME_DONE;
}

/* Opens the ledger. */
void
pp_worker_open_ledger(PpWorker *w)
{
	PpId mark = {0, 0};

	MemoryContextSwitchTo(w->cxt);
	pp_worker_transact(w, pp_apply_open, &mark);
	pp_held_seed(w->pipe, mark);
}

/* A PpWork; the name of a role can be looked up only in a transaction. */
static void
prepare(PpApply *a, void *worker)
{
	PpWorker *w = worker;

	PP_FAULT("at_prepare");
	pp_apply_prepare(a);
	pp_report_consumer(w->consumer, GetUserNameFromId(pp_apply_role(a), true));
}

/* Prepares the statement; waits until its target is there, and returns true when it was at once. */
bool
pp_worker_prepare(PpWorker *w)
{
	MemoryContextSwitchTo(w->cxt);
	return pp_worker_transact(w, prepare, w);
}

static void
set_up(PpWorker *w)
{
	w->cxt = AllocSetContextCreate(TopMemoryContext, "postpipe worker", ALLOCSET_DEFAULT_SIZES);
	w->error_cxt = AllocSetContextCreate(w->cxt, "postpipe error", ALLOCSET_SMALL_SIZES);
	w->pipe = &pp_shared->pipes[pp_my_proc->pipe_no];
	pp_backoff_init(&w->backoff, BACKOFF_FIRST_MS, BACKOFF_CAP_MS);
	for (int i = 0; i < 2; i++)
		w->batches[i].cxt = AllocSetContextCreate(w->cxt, "postpipe batch", PP_BATCH_CONTEXT_SIZES);
	pp_consumer_name(w->consumer, pp_my_proc->pipeline, pp_my_proc->worker);
	pp_report_consumer(w->consumer, NULL);
	open_pipeline(w);
	MemoryContextSwitchTo(w->cxt);
	w->owner_key = pp_owner_key_name(w->def);
	w->owner = pp_owner_name(w->def);
	pp_inflight_open(w->def->name, pp_my_proc->worker, w->def->version);
	w->redis = pp_redis_create(w->cxt, w->consumer);
}

/* Nothing is in hand any more.  The connection is kept if no reply is on its way. */
static void
leave_connection(PpWorker *w)
{
	if (pp_redis_outstanding(w->redis) > 0)
		pp_worker_disconnect(w);
	else
		begin_anew(w);
}

/* Connected and with nothing in hand: consumes until something fails. */
static void
serve(PpWorker *w)
{
	PpRedisError error = {0};

	/* What fails to connect has nothing to let go of: the others go on. */
	if (!pp_redis_is_open(w->redis) && !connect_redis(w))
	{
		pp_worker_redis_failed(w, pp_redis_error(w->redis));
		return;
	}
	/* What is left to acknowledge is read again with the own pending entries. */
	if (!w->recovered)
		w->ack_old.n = w->ack_new.n = 0;
	if (!w->group_open)
		w->group_open = pp_consume_open(w, &error);
	if (w->group_open && !w->recovered && pp_consume_pending(w, &error))
		pp_report_memory();
	if (w->recovered)
		pp_consume(w, &error);
	pp_held_release_all(w->pipe);
	if (error.class == PP_REDIS_CLASS_NONE)
	{
		/* There is something to be looked at; or what is pending is to be read again. */
		if (!w->group_open && pp_redis_is_open(w->redis))
			leave_connection(w);
		return;
	}
	/* The group has vanished: look what happened, and make it again. */
	if (strcmp(error.code, "redis_nogroup") == 0 && pp_steady_passed(w->no_group_at, NO_GROUP_MS))
	{
		w->no_group_at = pp_steady_now();
		leave_connection(w);
		return;
	}
	pp_worker_disconnect(w);
	pp_worker_redis_failed(w, &error);
}

/* The main function; main_arg is the number of the slot. */
void
postpipe_worker_main(Datum main_arg)
{
	static PpWorker worker; /* static: PG_TRY must not lose it */

	if (!pp_process_start(main_arg))
		proc_exit(0);
	pp_report_start();
	PG_TRY();
	{
		PP_FAULT("at_start");
		set_up(&worker);
		pp_worker_spare_server(&worker);
		for (;;)
			serve(&worker);
	}
	PG_CATCH();
	{
		/* Not expected: say so where it can be seen; the supervisor starts us again. */
		ErrorData *edata;

		MemoryContextSwitchTo(TopMemoryContext);
		edata = CopyErrorData();
		pp_report_error(worker.pipe, edata->sqlerrcode, edata->message);
		PG_RE_THROW();
	}
	PG_END_TRY();
}
