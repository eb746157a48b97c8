/*
 * supervisor_workers.c
 *		The workers of a database, as their supervisor sees them: started, watched, stopped.
 *
 * Each worker of a definition has a track, which outlives the process: it has the back-off before the
 * next start, and the version of the definition that the worker was started with.
 */
#include "supervisor_internal.h"

#include "miscadmin.h"

#include "child.h"
#include "process.h"
#include "stats.h"

#define BACKOFF_CAP_MS 30000

/* A worker that should run. */
typedef struct Track
{
	char pipeline[PP_PIPELINE_LEN];
	int worker;
	uint64 version;        /* of the definition that it was started with */
	const char *waits_for; /* the reason code while there is no slot for it; else NULL */
	PpChild child;
} Track;

static bool
may_run(PpSupervisor *s, const Track *t)
{
	PpPipeline *p = pp_pipeline_find(s->pipelines, t->pipeline);
	PpState state;
	const char *code;

	return p != NULL && t->worker <= p->workers &&
		   pp_supervisor_reason_to_rest(p, &state, &code) == NULL;
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
	pp_child_wait(&t->child);
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
	PpPipeline *p = pp_pipeline_find(s->pipelines, t->pipeline);
	PpPipe *pipe = pp_pipe_reserve(MyDatabaseId, p->name);
	char *name = psprintf("postpipe worker %s/%d", p->name, t->worker);
	PpProc *proc;

	if (pipe == NULL)
	{
		wait_for_slot(s, t, NULL, PP_PIPES_FULL_CODE, PP_PIPES_FULL);
		return;
	}
	t->version = p->version;
	proc = pp_proc_reserve(PP_PROC_WORKER, MyDatabaseId, s->datname, p->name,
						   (int) (pipe - pp_shared->pipes), t->worker);
	if (proc == NULL)
	{
		wait_for_process(s, t, pipe, "postpipe.max_workers");
		return;
	}
	if (!pp_child_start(&t->child, proc, "postpipe_worker_main", name, "postpipe worker"))
	{
		wait_for_process(s, t, pipe, "max_worker_processes");
		return;
	}
	t->waits_for = NULL;
	pp_supervisor_set_pipe_status(pipe, PP_STATE_RUNNING, "", "");
}

static void
count_restart(const Track *t)
{
	PpPipe *pipe = pp_pipe_find(MyDatabaseId, t->pipeline);

	if (pipe != NULL)
		pp_count(pipe, PP_COUNT_RESTARTS, 1);
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
			pp_child_init(&t->child, BACKOFF_CAP_MS);
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
	long next = -1;
	ListCell *lc;

	make_tracks(s);
	foreach (lc, s->tracks)
	{
		Track *t = lfirst(lc);
		PpPipeline *p = pp_pipeline_find(s->pipelines, t->pipeline);
		PpChild *child = &t->child;
		bool wanted = may_run(s, t);
		long due = -1;

		if (pp_child_look(child))
		{
			if (!wanted || t->version != p->version)
				pp_child_stop(child, PP_STOP_DEADLINE_MS);
			due = pp_steady_is_set(child->stop_asked_at) || child->proc->pid == 0 ? 1000 : -1;
		}
		else if (wanted)
		{
			if (pp_child_due_ms(child) <= 0)
			{
				if (pp_steady_is_set(child->started_at))
					count_restart(t);
				start_worker(s, t);
			}
			due = child->proc != NULL ? 1000 : Max(pp_child_due_ms(child), 10);
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

		if (t->child.proc != NULL && strcmp(t->pipeline, pipeline) == 0)
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
		ours += ((Track *) lfirst(lc))->child.proc != NULL;
	return pp_proc_count(MyDatabaseId) > ours;
}
