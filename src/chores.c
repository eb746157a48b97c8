/*
 * chores.c
 *		What worker 1 does between two batches, whether or not the stream is busy: dead letters are
 *		tried again, and removed when they are too old.
 *
 * Nothing here is done by a clock of its own: the time of what is due next is kept in memory (that
 * of the next retry in shared memory, where every worker lowers it when it stores a letter), and an
 * idle read blocks no longer than until then.  So there is no SQL while nothing is due.
 *
 * A letter that another worker stores while worker 1 blocks in Redis is noticed when that read
 * ends, after a few seconds.
 */
#include "worker_internal.h"

#include "pgstat.h"

#include "guc.h"
#include "held.h"
#include "process.h"
#include "retry.h"
#include "stats.h"

#define BACKOFF_FIRST_MS 1000
#define BACKOFF_CAP_MS   60000
#define MIN_EXPIRE_MS    60000 /* between two looks for letters that are too old, when none are left */
#define MAX_EXPIRE_MS    (3600 * 1000) /* … because the clock that tells their age may be set */

/* Reads the setting or the option that matters here. At the start, and after a reload. */
void
pp_chores_configure(PpWorker *w)
{
	MemoryContext old = MemoryContextSwitchTo(w->cxt);

	if (w->chores.retention != NULL)
		pfree(w->chores.retention);
	w->chores.retention = pp_pipeline_option(w->def, "dead_letter_retention");
	if (w->chores.retention == NULL && pp_guc_dead_letter_retention > 0)
		w->chores.retention = psprintf("%d minutes", pp_guc_dead_letter_retention);
	w->chores.expire_at = (PpSteady){0};
	MemoryContextSwitchTo(old);
}

/* What the table has from before this worker is found by looking at once. */
static void
begin(PpWorker *w)
{
	w->chores.begun = true;
	pp_backoff_init(&w->chores.backoff, BACKOFF_FIRST_MS, BACKOFF_CAP_MS);
	w->chores.retry_at = pp_steady_now();
}

/*
 * In how many ms are letters to be tried again?  At most max_ms.
 *
 * When a letter is due is in its row, and outlives the server there, so it is a time of the wall clock.
 * That is asked anew at each turn, which takes no longer than an idle read blocks: when the clock is set,
 * what the row says counts by the new time within seconds, be it that the letter is due now, or that it
 * has to wait until the clock is there again.  What we plan ourselves is by the steady clock.
 */
static long
retry_due_ms(PpWorker *w, long max_ms)
{
	TimestampTz due = pp_pipe_next_retry(w->pipe, false);

	if (due != 0)
		max_ms = Min(max_ms, TimestampDifferenceMilliseconds(GetCurrentTimestamp(), due));
	if (pp_steady_is_set(w->chores.retry_at))
		max_ms = Min(max_ms, pp_steady_left(w->chores.retry_at));
	return max_ms;
}

/*
 * Tries again what is due.  What goes wrong with the pipeline as a whole is shown by its batches; so
 * here it is only remembered as the last error, and tried again later: nobody has to wait for it.
 */
static void
retry(PpWorker *w)
{
	PpApplyResult result;
	PpRetryNext next;
	PpOutcome outcome;

	(void) pp_pipe_next_retry(w->pipe, true);
	pp_process_activity(true, "trying dead letters again");
	outcome = pp_retry_run(w->apply, w->batch_bytes, &result, &next);
	if (outcome == PP_OUTCOME_GONE)
		pp_worker_outdated(w);
	pp_count(w->pipe, PP_COUNT_APPLIED, result.applied);
	pp_count(w->pipe, PP_COUNT_CONFLICTED, result.conflicted);
	pp_count(w->pipe, PP_COUNT_FILTERED, result.filtered);
	pp_count(w->pipe, PP_COUNT_DEAD, result.dead);
	ConditionVariableBroadcast(&w->pipe->settled_cv);
	if (outcome == PP_OUTCOME_DONE)
		pp_backoff_reset(&w->chores.backoff);
	else
	{
		pp_report_error(w->pipe, result.error->sqlstate, result.error->message);
		next = (PpRetryNext){.look_at = pp_steady_in(pp_backoff_next(&w->chores.backoff))};
	}
	w->chores.retry_at = next.look_at;
	pp_pipe_retry_at(w->pipe, next.due_at);
	pgstat_report_stat(false);
}

static void
expire(PpWorker *w)
{
	PpExpire e = {.retention = w->chores.retention};
	long ms = MIN_EXPIRE_MS;

	pp_process_activity(true, "removing old dead letters");
	if (pp_worker_try(w, pp_retry_expire, &e))
	{
		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), e.next);
		ms = e.more ? 0 : Min(Max(ms, MIN_EXPIRE_MS), MAX_EXPIRE_MS);
	}
	w->chores.expire_at = pp_steady_in(ms);
	pgstat_report_stat(false);
}

/* Does what is due, a bounded piece of it. Outside a transaction; a batch may be in hand. */
void
pp_chores_run(PpWorker *w)
{
	if (pp_my_proc->worker > 1)
		return;
	if (!w->chores.begun)
		begin(w);
	if (w->group_open && pp_repair_is_wanted(w))
		pp_pipe_close(w->pipe);
	if (retry_due_ms(w, 1) == 0)
		retry(w);
	if (w->chores.retention != NULL && pp_steady_is_due(w->chores.expire_at))
		expire(w);
}

/* How many milliseconds the worker may wait: until something is due, at least 1, at most max_ms. */
long
pp_chores_due_ms(PpWorker *w, long max_ms)
{
	if (pp_my_proc->worker > 1)
		return max_ms;
	max_ms = retry_due_ms(w, pp_compact_due_ms(w, max_ms));
	if (w->chores.retention != NULL)
		max_ms = Min(max_ms, pp_steady_left(w->chores.expire_at));
	return Max(max_ms, 1);
}
