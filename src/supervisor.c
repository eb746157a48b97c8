/*
 * supervisor.c
 *		The supervisor of a database: keeps the workers of its pipelines alive.
 *
 * It works level-triggered: whenever it is woken, and when something is due, it compares what
 * should run with what runs (the slots in shared memory), and starts or stops the difference.  So
 * no signal that got lost can leave a pipeline without its worker.  It is woken by a child's start
 * or exit, by the commit of a change to a definition, and by a reload.
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
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/guc.h"

#include "backoff.h"
#include "events.h"
#include "guc.h"
#include "inflight.h"
#include "measure.h"
#include "pipeline.h"
#include "process.h"
#include "stats.h"

#define START_DEADLINE_MS 30000 /* from registering a worker to its start */
#define STOP_DEADLINE_MS  5000  /* from asking a worker to stop to terminating it */
#define LONG_LIVED_MS     30000 /* a worker that lived so long starts a new back-off */

/* A worker that should run. */
typedef struct Track
{
	char pipeline[PP_PIPELINE_LEN];
	int worker;
	uint64 version;    /* of the definition that it was started with */
	PpProc *proc;      /* NULL: not running */
	uint32 generation; /* of the slot when it was reserved */
	BackgroundWorkerHandle *handle;
	TimestampTz started_at;
	TimestampTz next_start_at;
	TimestampTz stop_asked_at; /* 0: not asked */
	const char *waits_for;     /* the reason code while there is no slot for it; else NULL */
	PpBackoff backoff;
} Track;

typedef struct Supervisor
{
	MemoryContext cxt;
	MemoryContext list_cxt; /* the definitions; reset before they are read anew */
	MemoryContext scratch;  /* reset in each turn of the loop */
	char datname[NAMEDATALEN];
	bool created;    /* the extension is */
	List *pipelines; /* PpPipeline */
	List *tracks;    /* Track */
	PpMeasure *measure;
} Supervisor;

static void
read_definitions(Supervisor *s)
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

static PpPipeline *
find_definition(Supervisor *s, const char *name)
{
	ListCell *lc;

	foreach (lc, s->pipelines)
		if (strcmp(((PpPipeline *) lfirst(lc))->name, name) == 0)
			return lfirst(lc);
	return NULL;
}

/* Why must no worker of this pipeline run?  NULL: they may. */
static const char *
reason_to_rest(const PpPipeline *p, PpState *state, const char **code)
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
		return "the definition comes from another server or database; to read from here, run "
			   "postpipe_resume(pipeline, take_over => true)";
	}
	return NULL;
}

static bool
may_run(Supervisor *s, const Track *t)
{
	PpPipeline *p = find_definition(s, t->pipeline);
	PpState state;
	const char *code;

	return p != NULL && t->worker <= p->workers && reason_to_rest(p, &state, &code) == NULL;
}

/* The slot of this track, if its worker is there or on its way. */
static bool
is_alive(const Track *t)
{
	bool alive;

	if (t->proc == NULL)
		return false;
	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	alive = t->proc->in_use && t->proc->generation == t->generation;
	LWLockRelease(&pp_shared->lock);
	return alive;
}

/* Notes that a worker has gone, and when the next one may start. */
static void
bury(Track *t)
{
	TimestampTz now = GetCurrentTimestamp();

	if (TimestampDifferenceExceeds(t->started_at, now, LONG_LIVED_MS) || t->stop_asked_at != 0)
		pp_backoff_reset(&t->backoff);
	t->next_start_at = t->stop_asked_at != 0
						   ? now
						   : TimestampTzPlusMilliseconds(now, pp_backoff_next(&t->backoff));
	t->proc = NULL;
	if (t->stop_asked_at != 0)
		t->started_at = 0; /* not a restart */
	t->stop_asked_at = 0;
	if (t->handle != NULL)
		pfree(t->handle);
	t->handle = NULL;
}

/* A worker that was registered and never came (fork failed) gives its slot back. */
static void
check_start(Track *t)
{
	pid_t pid;
	BgwHandleStatus status = GetBackgroundWorkerPid(t->handle, &pid);
	bool attached;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	attached = t->proc->pid != 0;
	LWLockRelease(&pp_shared->lock);
	if (status == BGWH_STOPPED ||
		(!attached &&
		 TimestampDifferenceExceeds(t->started_at, GetCurrentTimestamp(), START_DEADLINE_MS)))
	{
		if (status != BGWH_STOPPED)
			TerminateBackgroundWorker(t->handle);
		pp_proc_release(t->proc, t->generation);
		bury(t);
	}
}

/* Stops a worker between batches, or by force when that takes too long. */
static void
stop_worker(Track *t)
{
	TimestampTz now = GetCurrentTimestamp();

	if (t->stop_asked_at == 0)
	{
		t->stop_asked_at = now;
		pp_proc_ask_stop(t->proc);
	}
	else if (TimestampDifferenceExceeds(t->stop_asked_at, now, STOP_DEADLINE_MS))
		TerminateBackgroundWorker(t->handle);
}

static void
set_pipe_status(PpPipe *pipe, PpState state, const char *code, const char *reason)
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

/* There is no slot for this worker now.  Said once for all that wait for the same. */
static void
wait_for_slot(Supervisor *s, Track *t, PpPipe *pipe, const char *code, const char *reason)
{
	bool said = false;
	ListCell *lc;

	foreach (lc, s->tracks)
	{
		const Track *other = lfirst(lc);

		said |= other->waits_for != NULL && strcmp(other->waits_for, code) == 0;
	}
	t->waits_for = code;
	t->started_at = 0;
	t->next_start_at =
		TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pp_backoff_next(&t->backoff));
	if (pipe != NULL)
		set_pipe_status(pipe, PP_STATE_WAITING, code, reason);
	if (!said)
		ereport(LOG, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					  errmsg("postpipe supervisor of database \"%s\": pipelines wait: %s",
							 s->datname, reason)));
}

static void
wait_for_process(Supervisor *s, Track *t, PpPipe *pipe, const char *setting)
{
	wait_for_slot(s, t, pipe, "no_slot",
				  psprintf("no free worker slot; raise %s and restart the server", setting));
}

static void
start_worker(Supervisor *s, Track *t)
{
	PpPipeline *p = find_definition(s, t->pipeline);
	PpPipe *pipe = pp_pipe_reserve(MyDatabaseId, p->name);
	char *name = psprintf("postpipe worker %s/%d", p->name, t->worker);
	MemoryContext old;
	bool ok;

	if (pipe == NULL)
	{
		wait_for_slot(s, t, NULL, PP_PIPES_FULL_CODE, PP_PIPES_FULL);
		return;
	}
	t->version = p->version;
	t->started_at = GetCurrentTimestamp();
	t->proc = pp_proc_reserve(PP_PROC_WORKER, MyDatabaseId, s->datname, p->name,
							  (int) (pipe - pp_shared->pipes), t->worker);
	if (t->proc == NULL)
	{
		wait_for_process(s, t, pipe, "postpipe.max_workers");
		return;
	}
	t->generation = t->proc->generation;
	old = MemoryContextSwitchTo(s->cxt);
	ok = pp_process_register(t->proc, "postpipe_worker_main", name, "postpipe worker", &t->handle);
	MemoryContextSwitchTo(old);
	if (!ok)
	{
		pp_proc_release(t->proc, t->generation);
		t->proc = NULL;
		wait_for_process(s, t, pipe, "max_worker_processes");
		return;
	}
	t->waits_for = NULL;
	set_pipe_status(pipe, PP_STATE_RUNNING, "", "");
}

/* Has each wanted worker a track?  Those that are not wanted any more lose theirs when they stop. */
static void
make_tracks(Supervisor *s)
{
	MemoryContext old = MemoryContextSwitchTo(s->cxt);
	ListCell *lc;
	ListCell *lc2;

	foreach (lc, s->pipelines)
	{
		PpPipeline *p = lfirst(lc);

		for (int n = 1; n <= p->workers; n++)
		{
			bool found = false;
			Track *t;

			foreach (lc2, s->tracks)
			{
				t = lfirst(lc2);
				found |= t->worker == n && strcmp(t->pipeline, p->name) == 0;
			}
			if (found)
				continue;
			t = palloc0(sizeof(Track));
			strlcpy(t->pipeline, p->name, sizeof(t->pipeline));
			t->worker = n;
			pp_backoff_init(&t->backoff, 1000, 30000);
			s->tracks = lappend(s->tracks, t);
		}
	}
	MemoryContextSwitchTo(old);
}

/* Compares what should run with what runs. Returns in how many ms it wants to look again, or -1. */
static long
reconcile(Supervisor *s)
{
	TimestampTz now = GetCurrentTimestamp();
	long next = -1;
	ListCell *lc;

	make_tracks(s);
	foreach (lc, s->tracks)
	{
		Track *t = lfirst(lc);
		PpPipeline *p = find_definition(s, t->pipeline);
		bool wanted = may_run(s, t);
		long due = -1;

		if (t->proc != NULL && is_alive(t))
			check_start(t);
		if (t->proc != NULL && !is_alive(t))
			bury(t);
		if (t->proc != NULL)
		{
			if (!wanted || t->version != p->version)
				stop_worker(t);
			due = t->stop_asked_at != 0 || t->proc->pid == 0 ? 1000 : -1;
		}
		else if (wanted)
		{
			if (t->next_start_at <= now)
			{
				if (t->started_at != 0)
				{
					PpPipe *pipe = pp_pipe_find(MyDatabaseId, t->pipeline);

					if (pipe != NULL)
						pp_count(pipe, PP_COUNT_RESTARTS, 1);
				}
				start_worker(s, t);
			}
			due = t->proc != NULL ? 1000
								  : Max(TimestampDifferenceMilliseconds(now, t->next_start_at), 10);
		}
		else if (p == NULL || t->worker > p->workers)
		{
			s->tracks = foreach_delete_current(s->tracks, lc);
			pfree(t);
		}
		else
			t->waits_for = NULL;
		if (due >= 0)
			next = next < 0 ? due : Min(next, due);
	}
	return next;
}

static bool
has_workers(Supervisor *s, const char *pipeline)
{
	ListCell *lc;

	foreach (lc, s->tracks)
	{
		Track *t = lfirst(lc);

		if (t->proc != NULL && strcmp(t->pipeline, pipeline) == 0)
			return true;
	}
	return false;
}

/* Publishes the state of each pipeline that rests, and forgets those that are gone. */
static void
publish(Supervisor *s)
{
	ListCell *lc;

	foreach (lc, s->pipelines)
	{
		PpPipeline *p = lfirst(lc);
		PpPipe *pipe = pp_pipe_reserve(MyDatabaseId, p->name);
		PpState state;
		const char *code;
		const char *reason = reason_to_rest(p, &state, &code);

		if (pipe == NULL)
			continue;
		LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
		pipe->workers_wanted = reason == NULL ? p->workers : 0;
		pipe->commit_level = synchronous_commit;
		LWLockRelease(&pipe->lock);
		/* "paused" promises that no transaction of the pipeline is open any more. */
		if (reason != NULL && !has_workers(s, p->name))
			set_pipe_status(pipe, state, code, reason);
		else if (reason != NULL)
			set_pipe_status(pipe, PP_STATE_RUNNING, "stopping", "");
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
		if (!mine || find_definition(s, name) != NULL || has_workers(s, name))
			continue;
		if (!pp_proc_must_stop()) /* else the definitions were not even read */
			pp_inflight_remove(MyDatabaseId, name);
		pp_pipe_release(pipe);
	}
}

/* Are workers of a supervisor before us still there?  They have been asked to stop. */
static bool
strangers_left(Supervisor *s)
{
	int ours = 1;
	ListCell *lc;

	foreach (lc, s->tracks)
		ours += ((Track *) lfirst(lc))->proc != NULL;
	return pp_proc_count(MyDatabaseId) > ours;
}

static void
set_up(Supervisor *s)
{
	s->cxt = AllocSetContextCreate(TopMemoryContext, "postpipe supervisor", ALLOCSET_DEFAULT_SIZES);
	s->list_cxt = AllocSetContextCreate(s->cxt, "postpipe definitions", ALLOCSET_DEFAULT_SIZES);
	s->scratch = AllocSetContextCreate(s->cxt, "postpipe turn", ALLOCSET_DEFAULT_SIZES);
	strlcpy(s->datname, pp_my_proc->datname, sizeof(s->datname));
	SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_SESSION);
	s->measure = pp_measure_create(s->cxt);
}

/* One turn of the loop. */
static void
supervise(Supervisor *s)
{
	static bool stopping = false;
	TimestampTz end;
	long next;
	bool woken;

	MemoryContextReset(s->scratch);
	MemoryContextSwitchTo(s->scratch);
	(void) pp_process_reload();
	if (pp_proc_must_stop())
		stopping = true;
	if (stopping)
	{
		/* All workers first: whoever waits for us to leave the database waits for them, too. */
		s->created = false;
		s->pipelines = NIL;
	}
	else
		read_definitions(s);
	if (strangers_left(s))
	{
		pp_proc_enforce_stop(MyDatabaseId, STOP_DEADLINE_MS);
		next = 100;
	}
	else
		next = reconcile(s);
	if (stopping && pp_proc_count(MyDatabaseId) <= 1)
	{
		publish(s);
		pp_report_state(PP_STATE_STOPPED, "requested", "", NULL);
		proc_exit(0);
	}
	publish(s);
	if (s->created)
		pp_report_state(PP_STATE_RUNNING, "", "", NULL);
	else if (!stopping)
		pp_report_state(PP_STATE_IDLE, "no_extension",
						"extension postpipe is not created in this database", NULL);
	pgstat_report_stat(true);
	pp_process_activity(false,
						s->created ? "watching the workers" : "waiting for CREATE EXTENSION");
	/* Redis's replies are no reason to read the definitions again; the latch and time are. */
	end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), next);
	do
	{
		long due = s->created ? pp_measure_step(s->measure, s->pipelines) : -1;
		long left = -1;

		if (next >= 0)
			left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (left == 0)
			break;
		woken = pp_measure_wait(s->measure, left, due);
	} while (!woken);
}

/* The main function; main_arg is the number of the slot. */
void
postpipe_supervisor_main(Datum main_arg)
{
	static Supervisor supervisor;

	if (!pp_process_start(main_arg, pp_shared->procs[DatumGetInt32(main_arg)].dboid, true))
		proc_exit(0);
	set_up(&supervisor);
	for (;;)
		supervise(&supervisor);
}
