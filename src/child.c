/*
 * child.c
 *		A process of ours as its parent sees it: started, watched, stopped.
 */
#include "child.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#define BACKOFF_FIRST_MS  1000
#define START_DEADLINE_MS 30000 /* from registering it to its start */
#define LONG_LIVED_MS     30000 /* one that lived so long starts a new back-off */

/* A child that is not there, and may be started at once. */
void
pp_child_init(PpChild *c, int backoff_cap_ms)
{
	memset(c, 0, sizeof(*c));
	pp_backoff_init(&c->backoff, BACKOFF_FIRST_MS, backoff_cap_ms);
}

/* Has it its slot still, in which it is or will be? */
static bool
has_slot(const PpChild *c)
{
	bool alive;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	alive = c->proc->in_use && c->proc->generation == c->generation;
	LWLockRelease(&pp_shared->lock);
	return alive;
}

/* One that was registered and never came (fork failed, its database is gone) gives its slot back. */
static void
check_start(PpChild *c)
{
	pid_t pid;

	if (GetBackgroundWorkerPid(c->handle, &pid) == BGWH_STOPPED)
		pp_proc_release(c->proc, c->generation);
	else if (pp_steady_passed(c->started_at, START_DEADLINE_MS) &&
			 pp_proc_give_up(c->proc, c->generation))
		TerminateBackgroundWorker(c->handle);
}

/* Notes that it has gone, and when the next one may start. */
static void
bury(PpChild *c)
{
	bool asked = pp_steady_is_set(c->stop_asked_at);

	if (asked || pp_steady_passed(c->started_at, LONG_LIVED_MS))
		pp_backoff_reset(&c->backoff);
	c->next_start_at = pp_steady_in(asked ? 0 : pp_backoff_next(&c->backoff));
	if (asked)
		c->started_at = (PpSteady){0};
	c->stop_asked_at = (PpSteady){0};
	c->proc = NULL;
	pfree(c->handle);
	c->handle = NULL;
}

/* Is it there, or on its way? */
bool
pp_child_look(PpChild *c)
{
	if (c->proc == NULL)
		return false;
	if (has_slot(c))
		check_start(c);
	if (!has_slot(c))
		bury(c);
	return c->proc != NULL;
}

/*
 * pp_child_start
 *		Asks the postmaster for the process of a slot that was reserved for it.  Returns false when
 *		max_worker_processes does not allow it; the slot is given back then.
 */
bool
pp_child_start(PpChild *c, PpProc *proc, const char *main_function, const char *name,
			   const char *type)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	/* Only the parent restarts it: after a crash the postmaster would, with nobody knowing. */
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, PP_EXTENSION, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, main_function, sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, name, sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, type, sizeof(worker.bgw_type));
	worker.bgw_main_arg = Int32GetDatum((int32) (proc - pp_shared->procs));
	memcpy(worker.bgw_extra, &proc->generation, sizeof(proc->generation));
	worker.bgw_notify_pid = MyProcPid;
	c->started_at = pp_steady_now();
	c->generation = proc->generation;
	if (RegisterDynamicBackgroundWorker(&worker, &c->handle))
		c->proc = proc;
	else
		pp_proc_release(proc, proc->generation);
	MemoryContextSwitchTo(old);
	return c->proc != NULL;
}

/* It could not be started: notes when to try again. */
void
pp_child_wait(PpChild *c)
{
	c->started_at = (PpSteady){0};
	c->next_start_at = pp_steady_in(pp_backoff_next(&c->backoff));
}

/* Asks it to stop in its own time, and ends it by force when that takes longer than deadline_ms. */
void
pp_child_stop(PpChild *c, int deadline_ms)
{
	if (!pp_steady_is_set(c->stop_asked_at))
	{
		c->stop_asked_at = pp_steady_now();
		pp_proc_ask_stop(c->proc);
	}
	else if (pp_steady_passed(c->stop_asked_at, deadline_ms))
		TerminateBackgroundWorker(c->handle);
}

/* In how many ms may it be started? */
long
pp_child_due_ms(const PpChild *c)
{
	return pp_steady_left(c->next_start_at);
}
