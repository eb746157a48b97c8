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
	w->chores.expire_at = 0;
	MemoryContextSwitchTo(old);
}

/* What the table has from before this worker is found by looking at once. */
static void
begin(PpWorker *w)
{
	w->chores.begun = true;
	pp_backoff_init(&w->chores.backoff, BACKOFF_FIRST_MS, BACKOFF_CAP_MS);
	pp_pipe_retry_at(w->pipe, GetCurrentTimestamp());
}

/*
 * Tries again what is due.  What goes wrong with the pipeline as a whole is shown by its batches; so
 * here it is only remembered as the last error, and tried again later: nobody has to wait for it.
 */
static void
retry(PpWorker *w)
{
	PpApplyResult result;
	TimestampTz next;
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
		next =
			TimestampTzPlusMilliseconds(GetCurrentTimestamp(), pp_backoff_next(&w->chores.backoff));
	}
	pp_pipe_retry_at(w->pipe, next);
	pgstat_report_stat(false);
}

static void
expire(PpWorker *w)
{
	PpExpire e = {.retention = w->chores.retention};
	TimestampTz next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), MIN_EXPIRE_MS);

	pp_process_activity(true, "removing old dead letters");
	if (pp_worker_try(w, pp_retry_expire, &e))
		next = e.more ? 0 : Max(next, e.next);
	w->chores.expire_at = next;
	pgstat_report_stat(false);
}

/* Does what is due, a bounded piece of it. Outside a transaction; a batch may be in hand. */
void
pp_chores_run(PpWorker *w)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due;

	if (pp_my_proc->worker > 1)
		return;
	if (!w->chores.begun)
		begin(w);
	if (w->group_open && pp_repair_is_wanted(w))
		pp_pipe_close(w->pipe);
	due = pp_pipe_next_retry(w->pipe, false);
	if (due != 0 && due <= now)
		retry(w);
	if (w->chores.retention != NULL && w->chores.expire_at <= now)
		expire(w);
}

/* How many milliseconds the worker may wait: until something is due, at least 1, at most max_ms. */
long
pp_chores_due_ms(PpWorker *w, long max_ms)
{
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz due = pp_pipe_next_retry(w->pipe, false);

	if (pp_my_proc->worker > 1)
		return max_ms;
	max_ms = pp_compact_due_ms(w, max_ms);
	if (due != 0)
		max_ms = Min(max_ms, TimestampDifferenceMilliseconds(now, due));
	if (w->chores.retention != NULL)
		max_ms = Min(max_ms, TimestampDifferenceMilliseconds(now, w->chores.expire_at));
	return Max(max_ms, 1);
}
