/*
 * held.c
 *		Which entries the workers of a pipeline hold, and when all of them must hold still.
 *
 * A worker holds what it has received and not committed: one batch in each hand.  Redis gives an
 * entry to one consumer only, until somebody sets the group back or a failover forgets a delivery:
 * then two workers have it at once, and neither finds it in the ledger.  So each batch takes a
 * ticket, and who is about to look entries up waits for those with a lower ticket that hold some of
 * the same.  Tickets only grow, so nobody waits in a circle.
 *
 * A batch above everything that any worker has received before cannot be on record: it need not be
 * looked up.  That mark is the pipeline's, because after a failover worker 1 gets what worker 2 had.
 *
 * Reads of new entries are numbered as well, so that it can be told when all that the group had
 * delivered at some moment must have come: watch.c compares that with what Redis says.
 *
 * What concerns the stream as a whole (who owns the group, is it still the same stream, what was
 * skipped) is looked at by worker 1 while the others hold still: a pipeline is closed by any of its
 * workers, each settles what it holds and parks, worker 1 looks, and opens it.
 *
 * Everything here is covered by the pipeline's lock.
 */
#include "held.h"

#include "storage/latch.h"

/* Calls `visit` for each worker of the pipeline, this one included, with both locks held. */
typedef bool (*Visit)(PpProc *proc, void *arg);

static bool
any_worker(PpPipe *pipe, LWLockMode mode, Visit visit, void *arg)
{
	int pipe_no = (int) (pipe - pp_shared->pipes);
	bool found = false;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	LWLockAcquire(&pipe->lock, mode);
	for (int i = 1 + PP_MAX_DATABASES; i < pp_shared->num_procs && !found; i++)
	{
		PpProc *proc = &pp_shared->procs[i];

		found = proc->in_use && proc->pipe_no == pipe_no && proc->dboid == pipe->dboid &&
				visit(proc, arg);
	}
	LWLockRelease(&pipe->lock);
	LWLockRelease(&pp_shared->lock);
	return found;
}

static void
raise_mark(PpPipe *pipe, PpId id)
{
	if (pp_id_compare(id, pipe->mark) > 0)
		pipe->mark = id;
}

/* What the ledger has reaches up to `mark`. */
void
pp_held_seed(PpPipe *pipe, PpId mark)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	raise_mark(pipe, mark);
	LWLockRelease(&pipe->lock);
}

/* Up to here everything was delivered to some worker of the pipeline, as far as is known. */
PpId
pp_held_seen(PpPipe *pipe)
{
	PpId seen;

	LWLockAcquire(&pipe->lock, LW_SHARED);
	seen = pipe->mark;
	if (pipe->seen_known && pp_id_compare(pipe->seen, seen) < 0)
		seen = pipe->seen;
	LWLockRelease(&pipe->lock);
	return seen;
}

/* An epoch begins in which nothing was delivered yet. */
void
pp_held_forget(PpPipe *pipe)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->seen = (PpId){0, 0};
	pipe->seen_known = true;
	LWLockRelease(&pipe->lock);
}

/*
 * pp_held_take
 *		This worker has received entries first..last, in hand 0 or 1.  Returns true when they lie
 *		above whatever any worker received before, so that none can be on record; else the ledger
 *		has to be asked, after pp_held_must_wait() says no.
 */
bool
pp_held_take(PpPipe *pipe, int hand, PpId first, PpId last)
{
	bool above;

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	above = pp_id_compare(first, pipe->mark) > 0;
	raise_mark(pipe, last);
	pp_my_proc->held[hand] = (PpHeld){++pipe->last_ticket, first, last};
	LWLockRelease(&pipe->lock);
	return above;
}

static bool
holds_before(PpProc *proc, void *arg)
{
	const PpHeld *mine = arg;

	if (proc == pp_my_proc)
		return false;
	for (int i = 0; i < lengthof(proc->held); i++)
	{
		const PpHeld *held = &proc->held[i];

		if (held->ticket != 0 && held->ticket < mine->ticket &&
			pp_id_compare(held->first, mine->last) <= 0 &&
			pp_id_compare(held->last, mine->first) >= 0)
			return true;
	}
	return false;
}

/* Does another worker hold some of the same entries, and did it receive them before us? */
bool
pp_held_must_wait(PpPipe *pipe, int hand)
{
	return any_worker(pipe, LW_SHARED, holds_before, &pp_my_proc->held[hand]);
}

/* Has a worker this entry, or may it come with what the worker reads ahead?  What is read comes in stream order. */
static bool
may_have(PpProc *proc, void *arg)
{
	const PpId *id = arg;

	for (int i = 0; i < lengthof(proc->held); i++)
	{
		const PpHeld *held = &proc->held[i];

		if (held->ticket != 0 && pp_id_compare(held->first, *id) <= 0 &&
			(proc->reading != 0 || pp_id_compare(held->last, *id) >= 0))
			return true;
	}
	return false;
}

/*
 * pp_held_leave_out
 *		Redis has said that these entries are gone, and pending for somebody who has no worker.  Leaves out those
 *		that a worker may have been given before they were taken away from it: it applies them without a look-up,
 *		and acknowledges them.  Returns how many are left, which may be settled.
 */
int
pp_held_leave_out(PpPipe *pipe, PpId *ids, int n)
{
	int kept = 0;

	for (int i = 0; i < n; i++)
		if (!any_worker(pipe, LW_SHARED, may_have, &ids[i]))
			ids[kept++] = ids[i];
	return kept;
}

/* Has this worker received what it has not committed yet, in hand 0 or 1? */
bool
pp_held_is_in_hand(int hand)
{
	return pp_my_proc->held[hand].ticket != 0;
}

/* What was in this hand is committed. */
void
pp_held_release(PpPipe *pipe, int hand)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pp_my_proc->held[hand].ticket = 0;
	LWLockRelease(&pipe->lock);
}

/* Nothing is in hand, or on its way: what was there will be delivered again. */
void
pp_held_release_all(PpPipe *pipe)
{
	for (int i = 0; i < lengthof(pp_my_proc->held); i++)
		pp_held_release(pipe, i);
	pp_held_set_unacknowledged(pipe, -1);
	pp_read_ends(pipe, 0);
}

/* This worker has committed so many entries that are still pending; -1: it does not know. */
void
pp_held_set_unacknowledged(PpPipe *pipe, int64 n)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pp_my_proc->unacknowledged = n;
	LWLockRelease(&pipe->lock);
}

/* Workers that were asked, and what they have said. */
typedef struct Unacknowledged
{
	int workers;
	int64 n;
	bool known;
} Unacknowledged;

static bool
add_unacknowledged(PpProc *proc, void *arg)
{
	Unacknowledged *all = arg;

	all->workers++;
	all->n += proc->unacknowledged;
	all->known &= proc->unacknowledged >= 0;
	return false;
}

/*
 * How many of the pending entries are committed?  -1: that is not known, because an acknowledgement is on
 * its way, or a worker has not read its own pending entries again since it came.
 */
int64
pp_pipe_unacknowledged(PpPipe *pipe)
{
	Unacknowledged all = {.known = true};

	(void) any_worker(pipe, LW_SHARED, add_unacknowledged, &all);
	return all.known && all.workers > 0 && all.workers >= pipe->workers_wanted ? all.n : -1;
}

/* This worker asks for new entries.  Returns how many all of them have received up to now. */
uint64
pp_read_begins(PpPipe *pipe)
{
	uint64 received;

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pp_my_proc->reading = ++pipe->reads;
	received = pipe->received;
	LWLockRelease(&pipe->lock);
	return received;
}

/* It was given so many. */
void
pp_read_ends(PpPipe *pipe, int entries)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pp_my_proc->reading = 0;
	pipe->received += entries;
	LWLockRelease(&pipe->lock);
}

static bool
reads_before(PpProc *proc, void *arg)
{
	return proc != pp_my_proc && proc->reading != 0 && proc->reading <= *(uint64 *) arg;
}

/* Is a read of another worker, up to this number, still under way? */
bool
pp_read_is_awaited(PpPipe *pipe, uint64 upto)
{
	return any_worker(pipe, LW_SHARED, reads_before, &upto);
}

static bool
wake(PpProc *proc, void *arg)
{
	if (proc->latch != NULL)
		SetLatch(proc->latch);
	return false;
}

/* All workers, the caller as well, are to settle what they hold and park, and worker 1 to look at the stream. */
void
pp_pipe_close(PpPipe *pipe)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->opened = false;
	LWLockRelease(&pipe->lock);
	(void) any_worker(pipe, LW_SHARED, wake, NULL);
}

static bool
is_there(PpProc *proc, void *arg)
{
	return true;
}

/*
 * pp_pipe_leave
 *		A worker has gone.  The last one closes the pipeline: who comes later waits until worker 1 has looked, as
 *		stream and group may be others then.
 */
void
pp_pipe_leave(PpPipe *pipe)
{
	if (!any_worker(pipe, LW_SHARED, is_there, NULL))
		pp_pipe_close(pipe);
}

/* Worker 1 has looked. */
void
pp_pipe_open(PpPipe *pipe)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->opened = true;
	pipe->opening++;
	LWLockRelease(&pipe->lock);
	(void) any_worker(pipe, LW_SHARED, wake, NULL);
}

/* The number of the opening, from 1; 0: the pipeline is closed. */
uint64
pp_pipe_opening(PpPipe *pipe)
{
	uint64 opening;

	LWLockAcquire(&pipe->lock, LW_SHARED);
	opening = pipe->opened ? pipe->opening : 0;
	LWLockRelease(&pipe->lock);
	return opening;
}

/* This worker holds nothing, and waits for the pipeline to be opened. */
void
pp_pipe_park(PpPipe *pipe)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pp_my_proc->parked = true;
	LWLockRelease(&pipe->lock);
	(void) any_worker(pipe, LW_SHARED, wake, NULL);
}

/* This worker begins to read, if the pipeline was not closed since that opening. */
bool
pp_pipe_enter(PpPipe *pipe, uint64 opening)
{
	bool entered;

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	entered = pipe->opened && pipe->opening == opening;
	pp_my_proc->parked = !entered;
	LWLockRelease(&pipe->lock);
	return entered;
}

/* A worker that comes is parked from the start: it enters before it reads. */
static bool
is_restless(PpProc *proc, void *arg)
{
	return proc != pp_my_proc && !proc->parked;
}

/* Are all other workers parked? */
bool
pp_pipe_is_still(PpPipe *pipe)
{
	return !any_worker(pipe, LW_SHARED, is_restless, NULL);
}
