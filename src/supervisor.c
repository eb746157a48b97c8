/*
 * supervisor.c
 *		The supervisor of a database: keeps the workers of its pipelines alive.
 *
 * It works level-triggered: whenever it is woken, and when something is due, it compares what
 * should run with what runs (the slots in shared memory), and starts or stops the difference
 * (supervisor_workers.c).  So no signal that got lost can leave a pipeline without its worker.  It is
 * woken by a child's start or exit, by the commit of a change to a definition, and by a reload.
 *
 * It runs no SQL of users.  While the extension is not created in its database it only waits.
 * Between times it measures pending and lag of the groups (measure.c).
 *
 * When it exits, its workers are asked to stop: they would have nobody to restart them.
 */
#include "worker.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/guc.h"

#include "events.h"
#include "guc.h"
#include "inflight.h"
#include "measure.h"
#include "pipeline.h"
#include "process.h"
#include "stats.h"
#include "supervisor_internal.h"

static void
read_definitions(PpSupervisor *s)
{
	PpExtension ext;

	MemoryContextReset(s->list_cxt);
	s->pipelines = NIL;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	MemoryContextSwitchTo(s->list_cxt);
	s->created = pp_extension_lock(&ext);
	PushActiveSnapshot(GetTransactionSnapshot());
	if (s->created)
		s->pipelines = pp_pipeline_list(&ext);
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(s->scratch);
}

/*
 * pp_supervisor_reason_to_rest
 *		Why must no worker of this pipeline run?  Sets the state that is to be shown and its reason code.
 *		NULL: they may, and there is no such state.  Throws nothing.
 */
const char *
pp_supervisor_reason_to_rest(const PpPipeline *p, PpState *state, const char **code)
{
	*code = "";
	if (!p->enabled)
	{
		*state = PP_STATE_PAUSED;
		*code = "paused";
		return p->enabled_reason ? p->enabled_reason : "paused";
	}
	if (!pp_guc_enabled)
	{
		*state = PP_STATE_STOPPED;
		*code = "disabled";
		return "postpipe.enabled is off";
	}
	if (!pp_pipeline_is_armed(p))
	{
		*state = PP_STATE_DISARMED;
		*code = "disarmed";
		return "the definition comes from another server or database, or from a dump; to read from "
			   "here, run postpipe_resume(pipeline, take_over => true)";
	}
	return NULL;
}

/*
 * pp_supervisor_set_pipe_status
 *		Shows the state of a pipeline to the views; a change of it is an event, too, and wakes who waits
 *		for one.  Throws nothing.
 */
void
pp_supervisor_set_pipe_status(PpPipe *pipe, PpState state, const char *code, const char *reason)
{
	bool changed;

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	changed = pp_status_set(&pipe->status, state, code, reason);
	LWLockRelease(&pipe->lock);
	if (!changed)
		return;
	pp_event_state(pipe->name, state, code, reason, NULL);
	ConditionVariableBroadcast(&pp_shared->state_cv);
}

/* Publishes the state of each pipeline that rests, and forgets those that are gone. */
static void
publish(PpSupervisor *s)
{
	ListCell *lc;

	foreach (lc, s->pipelines)
	{
		PpPipeline *p = lfirst(lc);
		PpPipe *pipe = pp_pipe_reserve(MyDatabaseId, p->name);
		PpState state;
		const char *code;
		const char *reason = pp_supervisor_reason_to_rest(p, &state, &code);

		if (pipe == NULL)
			continue;
		LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
		pipe->workers_wanted = reason == NULL ? p->workers : 0;
		pipe->commit_level = synchronous_commit;
		LWLockRelease(&pipe->lock);
		/* "paused" promises that no transaction of the pipeline is open any more. */
		if (reason != NULL && !pp_supervisor_has_workers(s, p->name))
			pp_supervisor_set_pipe_status(pipe, state, code, reason);
		else if (reason != NULL)
			pp_supervisor_set_pipe_status(pipe, PP_STATE_RUNNING, "stopping", "");
	}
	for (int i = 0; i < PP_MAX_PIPELINES; i++)
	{
		PpPipe *pipe = &pp_shared->pipes[i];
		char name[PP_PIPELINE_LEN];
		bool mine;

		LWLockAcquire(&pp_shared->lock, LW_SHARED);
		mine = pipe->in_use && pipe->dboid == MyDatabaseId;
		strlcpy(name, pipe->name, sizeof(name));
		LWLockRelease(&pp_shared->lock);
		if (!mine || pp_pipeline_find(s->pipelines, name) != NULL ||
			pp_supervisor_has_workers(s, name))
			continue;
		if (!pp_proc_must_stop()) /* else the definitions were not even read */
			pp_inflight_remove(MyDatabaseId, name);
		pp_pipe_release(pipe);
	}
}

static void
set_up(PpSupervisor *s)
{
	s->cxt = AllocSetContextCreate(TopMemoryContext, "postpipe supervisor", ALLOCSET_DEFAULT_SIZES);
	s->list_cxt = AllocSetContextCreate(s->cxt, "postpipe definitions", ALLOCSET_DEFAULT_SIZES);
	s->scratch = AllocSetContextCreate(s->cxt, "postpipe turn", ALLOCSET_DEFAULT_SIZES);
	strlcpy(s->datname, pp_my_proc->datname, sizeof(s->datname));
	SetConfigOption("search_path", PP_SAFE_PATH, PGC_SUSET, PGC_S_SESSION);
	s->measure = pp_measure_create(s->cxt);
}

/* One turn of the loop. */
static void
supervise(PpSupervisor *s)
{
	PpSteady end;
	long next;
	bool woken;

	MemoryContextSwitchTo(s->scratch);
	(void) pp_process_reload();
	if (pp_proc_must_stop())
		s->stopping = true;
	if (s->stopping)
	{
		/* All workers first: whoever waits for us to leave the database waits for them, too. */
		s->created = false;
		s->pipelines = NIL;
	}
	else
		read_definitions(s);
	if (pp_supervisor_strangers_left(s))
	{
		pp_proc_enforce_stop(MyDatabaseId, PP_STOP_DEADLINE_MS);
		next = 100;
	}
	else
		next = pp_supervisor_reconcile(s);
	if (s->stopping && pp_proc_count(MyDatabaseId) <= 1)
	{
		publish(s);
		pp_report_state(PP_STATE_STOPPED, "requested", "", NULL);
		proc_exit(0);
	}
	publish(s);
	if (s->created)
		pp_report_state(PP_STATE_RUNNING, "", "", NULL);
	else if (!s->stopping)
		pp_report_state(PP_STATE_IDLE, "no_extension",
						"extension postpipe is not created in this database", NULL);
	pgstat_report_stat(true);
	pp_process_activity(false,
						s->created ? "watching the workers" : "waiting for CREATE EXTENSION");
	/* Redis's replies are no reason to read the definitions again; the latch and time are. */
	end = pp_steady_in(next);
	do
	{
		long due;
		long left = -1;

		MemoryContextReset(s->scratch);
		due = s->created ? pp_measure_step(s->measure, s->pipelines) : -1;
		if (next >= 0)
			left = pp_steady_left(end);
		if (left == 0)
			break;
		woken = pp_measure_wait(s->measure, left, due);
	} while (!woken);
}

/* The main function; main_arg is the number of the slot. */
void
postpipe_supervisor_main(Datum main_arg)
{
	static PpSupervisor supervisor;

	if (!pp_process_start(main_arg))
		proc_exit(0);
	set_up(&supervisor);
	for (;;)
		supervise(&supervisor);
}
