/*
 * sqlfuncs_wait.c
 *		Functions that wait: for a state of a pipeline, and for an entry.
 *
 * Both sleep on a condition variable in shared memory, and hold nothing but the caller's snapshot.
 */
#include "sqlfuncs.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"

#include "ledger.h"
#include "store.h"
#include "wait_event.h"

PG_FUNCTION_INFO_V1(postpipe_wait_state);
PG_FUNCTION_INFO_V1(postpipe_wait);

/* What is settled by a function in a backend commits without waking anybody. */
#define LOOK_MS 1000

/* An idle pipeline is one that runs, and has nothing to do. */
static bool
is_state(PpState state, const char *name)
{
	return strcmp(pp_state_name(state), name) == 0 ||
		   (state == PP_STATE_IDLE && strcmp(pp_state_name(PP_STATE_RUNNING), name) == 0);
}

/* postpipe_wait_state(pipeline, state, timeout): false when time is up. */
Datum
postpipe_wait_state(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char *state = text_to_cstring(PG_GETARG_TEXT_PP(1));
	PpSteady end;
	PpExtension ext;
	bool known = false;
	bool reached;

	pp_require_preload();
	pp_require_extension(&ext);
	if (pp_require_pipeline(&ext, name)->changed_here)
		ereport(
			ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("pipeline \"%s\" was changed in this transaction, which takes effect at "
					"commit only",
					name),
			 errhint("Wait in a transaction of its own; statements that are sent as one string, "
					 "as by psql -c, are one transaction.")));
	for (int i = 0; i <= PP_STATE_WAITING; i++)
		known |= strcmp(pp_state_name(i), state) == 0;
	if (!known)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("invalid state \"%s\"", state),
				 errhint("States are starting, running, idle, paused, retrying, failed, disarmed, "
						 "fenced, waiting and stopped.")));
	end = pp_steady_in(pp_interval_ms(PG_GETARG_INTERVAL_P(2)));
	ConditionVariablePrepareToSleep(&pp_shared->state_cv);
	while (!(reached = is_state(pp_pipeline_status(name, NULL), state)))
	{
		long left = pp_steady_left(end);

		if (left <= 0)
			break;
		(void) ConditionVariableTimedSleep(&pp_shared->state_cv, left,
										   pp_wait_event(PP_WAIT_STATE));
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(reached);
}

/* Has no worker received the entry yet?  Then the tables need not be asked. */
static bool
is_still_ahead(const char *pipeline, PpId id)
{
	PpPipe *pipe = pp_pipe_find(MyDatabaseId, pipeline);
	PpId mark = {0, 0};

	if (pipe != NULL)
	{
		LWLockAcquire(&pipe->lock, LW_SHARED);
		mark = pipe->mark;
		LWLockRelease(&pipe->lock);
	}
	return !pp_id_is_zero(mark) && pp_id_compare(id, mark) > 0;
}

/*
 * The state of the letter of this entry, "lost" if it is gone, NULL if it is neither.  With `perhaps` also if others
 * around it are lost: entries that are there may lie between them.
 */
static char *
what_became(const PpExtension *ext, const char *pipeline, PpId id, bool perhaps)
{
	PpStoreScope store;
	Oid types[] = {TEXTOID, pp_id_type_oid(ext), BOOLOID};
	Datum values[] = {CStringGetTextDatum(pipeline), PointerGetDatum(&id), BoolGetDatum(perhaps)};
	MemoryContext cxt = CurrentMemoryContext;
	char *state = NULL;

	pp_store_begin(&store, ext);
	SPI_execute_with_args(
		psprintf("SELECT state FROM %1$s.postpipe_dead_letter WHERE pipeline = $1 "
				 "AND id OPERATOR(%1$s.=) $2 UNION ALL "
				 "SELECT 'lost' FROM %1$s.postpipe_lost_range WHERE pipeline = $1 "
				 "AND first_id OPERATOR(%1$s.<=) $2 AND last_id "
				 "OPERATOR(%1$s.>=) $2 AND (cause = 'deleted_while_pending' OR $3)",
				 ext->schema_name),
		3, types, values, NULL, false, 1);
	if (SPI_processed > 0)
		state =
			MemoryContextStrdup(cxt, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	pp_store_end(&store);
	return state;
}

/* Is there nothing to wait for any more?  *applied: because it is applied, or filtered. */
static bool
is_decided(const PpExtension *ext, const char *pipeline, PpId id, bool *applied)
{
	bool settled;
	char *state;
	char buf[PP_ID_LEN];

	*applied = false;
	if (is_still_ahead(pipeline, id))
		return false;
	pp_ledger_settled(ext, pipeline, &id, 1, &settled);
	if (!settled)
		return false;
	state = what_became(ext, pipeline, id, false);
	*applied = state == NULL;
	if (state == NULL || strcmp(state, "retrying") == 0)
		return *applied;
	pp_id_print(id, buf);
	ereport(WARNING,
			(errmsg("entry %s of pipeline \"%s\" was not applied: it is %s", buf, pipeline, state),
			 errhint("See postpipe_dlq and postpipe_lost.")));
	return true;
}

/* Time is up: says what is known of the reason. */
static void
explain(const PpExtension *ext, const char *pipeline, PpId id)
{
	PpState state = pp_pipeline_status(pipeline, NULL);
	char *became = what_became(ext, pipeline, id, true);
	char buf[PP_ID_LEN];

	if (state != PP_STATE_IDLE && state != PP_STATE_RUNNING)
		ereport(NOTICE, (errmsg("pipeline \"%s\" is %s", pipeline, pp_state_name(state)),
						 errhint("See postpipe_stats for the reason.")));
	if (became == NULL || strcmp(became, "lost") != 0)
		return;
	pp_id_print(id, buf);
	ereport(WARNING, (errmsg("entry %s of pipeline \"%s\" may be lost, as others around it are",
							 buf, pipeline),
					  errhint("See postpipe_lost.")));
}

/*
 * postpipe_wait(pipeline, id, timeout)
 *		Waits until the entry is applied, and its row to be seen by the next statement.  False when time is
 *		up, or it never will be: that is said.
 */
Datum
postpipe_wait(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	PpId id = *(PpId *) PG_GETARG_POINTER(1);
	PpSteady end = pp_steady_in(pp_interval_ms(PG_GETARG_INTERVAL_P(2)));
	PpExtension ext;
	PpPipe *pipe;
	bool applied;
	long left;

	pp_require_preload();
	if (IsolationUsesXactSnapshot())
		ereport(ERROR, (errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
						errmsg("postpipe_wait() must be called in a transaction with isolation "
							   "level read committed"),
						errdetail("Another one would not see the row.")));
	pp_require_extension(&ext);
	(void) pp_require_pipeline(&ext, name);
	pipe = pp_pipe_find(MyDatabaseId, name);
	ConditionVariablePrepareToSleep(pipe ? &pipe->settled_cv : &pp_shared->state_cv);
	while (!is_decided(&ext, name, id, &applied))
	{
		left = pp_steady_left(end);
		if (left <= 0)
		{
			explain(&ext, name, id);
			break;
		}
		(void) ConditionVariableTimedSleep(pipe ? &pipe->settled_cv : &pp_shared->state_cv,
										   Min(left, LOOK_MS), pp_wait_event(PP_WAIT_ENTRY));
	}
	ConditionVariableCancelSleep();
	PG_RETURN_BOOL(applied);
}
