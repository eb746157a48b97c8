/*
 * supervisor_workers.c
 *		The workers of a database, as their supervisor sees them: started, watched, stopped.
 *
 * Each worker of a definition has a track, which outlives the process: it has the back-off before the
 * next start, and the version of the definition that the worker was started with.
 */
#include "supervisor_internal.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"

#include "backoff.h"
#include "process.h"
#include "stats.h"

#define START_DEADLINE_MS 30000 /* from registering a worker to its start */
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

static bool
may_run(PpSupervisor *s, const Track *t)
{
	PpPipeline *p = pp_supervisor_find_definition(s, t->pipeline);
	PpState state;
	const char *code;

	return p != NULL && t->worker <= p->workers &&
		   pp_supervisor_reason_to_rest(p, &state, &code) == NULL;
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
	else if (TimestampDifferenceExceeds(t->stop_asked_at, now, PP_STOP_DEADLINE_MS))
		TerminateBackgroundWorker(t->handle);
}

/* There is no slot for this worker now.  Said once for all that wait for the same. */
static void
wait_for_slot(PpSupervisor *s, Track *t, PpPipe *pipe, const char *code, const char *reason)
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
		pp_supervisor_set_pipe_status(pipe, PP_STATE_WAITING, code, reason);
	if (!said)
		ereport(LOG, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					  errmsg("postpipe supervisor of database \"%s\": pipelines wait: %s",
							 s->datname, reason)));
}

static void
wait_for_process(PpSupervisor *s, Track *t, PpPipe *pipe, const char *setting)
{
	wait_for_slot(s, t, pipe, "no_slot",
				  psprintf("no free worker slot; raise %s and restart the server", setting));
}

static void
start_worker(PpSupervisor *s, Track *t)
{
	PpPipeline *p = pp_supervisor_find_definition(s, t->pipeline);
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
	pp_supervisor_set_pipe_status(pipe, PP_STATE_RUNNING, "", "");
}

/* Has each wanted worker a track?  Those that are not wanted any more lose theirs when they stop. */
static void
make_tracks(PpSupervisor *s)
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

/*
 * pp_supervisor_reconcile
 *		Compares what should run with what runs, and starts or stops the difference.  Returns in how many
 *		ms it wants to look again, or -1.  Throws only when memory is short.
 */
long
pp_supervisor_reconcile(PpSupervisor *s)
{
	TimestampTz now = GetCurrentTimestamp();
	long next = -1;
	ListCell *lc;

	make_tracks(s);
	foreach (lc, s->tracks)
	{
		Track *t = lfirst(lc);
		PpPipeline *p = pp_supervisor_find_definition(s, t->pipeline);
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

/*
 * pp_supervisor_has_workers
 *		Has the pipeline a worker that is there or on its way?  Throws nothing.
 */
bool
pp_supervisor_has_workers(PpSupervisor *s, const char *pipeline)
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

/*
 * pp_supervisor_strangers_left
 *		Are workers of a supervisor before us still there?  They have been asked to stop.  Throws nothing.
 */
bool
pp_supervisor_strangers_left(PpSupervisor *s)
{
	int ours = 1;
	ListCell *lc;

	foreach (lc, s->tracks)
		ours += ((Track *) lfirst(lc))->proc != NULL;
	return pp_proc_count(MyDatabaseId) > ours;
}
