/*
 * threshold.c
 *		When too many entries fail, the pipeline stops, instead of dead-lettering the world.
 *
 * The last entries that were decided (applied, or found to fail alone) are kept in memory, in a
 * window.  Before each commit the entries that it would settle are counted in as well: when more
 * than MIN_FAILED of the window have failed, and their share is above the pipeline's option
 * error_threshold, the transaction is rolled back and nothing of it is dead-lettered.
 *
 * A pipeline that is stopped tries again with back-off, as always, but looks at a few entries only
 * (pp_apply_samples_pass()).  When the whole batch passes, or enough of the samples do, the window
 * begins anew.  It lives in the worker's memory: pause and resume begin it anew, too.
 */
#include "apply_internal.h"

#include "utils/memutils.h"

#define MIN_FAILED        100
#define DEFAULT_THRESHOLD 0.5

static void
add(PpWindow *w, bool failed)
{
	if (w->n == PP_WINDOW_ENTRIES)
		w->failed -= w->entries[w->next];
	else
		w->n++;
	w->entries[w->next] = failed;
	w->failed += failed;
	w->next = (w->next + 1) % PP_WINDOW_ENTRIES;
}

static bool
is_decided(const PpEntry *entry)
{
	return !entry->settled && entry->letter == NULL &&
		   (entry->verdict == PP_VERDICT_APPLIED || entry->verdict == PP_VERDICT_DEAD);
}

void
pp_threshold_init(PpApply *a)
{
	a->error_threshold =
		pp_pipeline_option_float(a->pipeline, "error_threshold", DEFAULT_THRESHOLD);
}

/* The window begins anew, and the pipeline goes on. */
void
pp_threshold_reset(PpApply *a)
{
	memset(&a->window, 0, sizeof(a->window));
	a->stopped = false;
}

/* An entry is about to be settled in a transaction that is committed. */
void
pp_threshold_note(PpApply *a, const PpEntry *entry)
{
	if (is_decided(entry))
		add(&a->window, entry->verdict == PP_VERDICT_DEAD);
}

/* Keeps what is said for as long as the pipeline is stopped, and throws it. */
static void
stop(PpApply *a, int failed, int n, const PpEntryError *last)
{
	a->over = true;
	a->last_sqlstate = last->sqlstate;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%d of the last %d entries failed, the last one with: %s", failed, n,
					last->message),
			 errdetail("SQLSTATE %s. More than %g of them is too much; the batch is not applied.",
					   unpack_sql_state(last->sqlstate), a->error_threshold),
			 errhint("When table or statement are mended, the pipeline goes on by itself. Its "
					 "option error_threshold says which share may fail; with 1, all are "
					 "dead-lettered.")));
}

/* Before a commit: throws when too many have failed. */
void
pp_threshold_check(PpApply *a, const PpBatch *batch)
{
	const PpEntryError *last = NULL;
	PpWindow window;

	for (int i = 0; i < batch->n; i++)
		if (is_decided(&batch->entries[i]) && batch->entries[i].verdict == PP_VERDICT_DEAD)
			last = batch->entries[i].error;
	if (last == NULL)
		return;
	window = a->window;
	for (int i = 0; i < batch->n; i++)
		if (is_decided(&batch->entries[i]))
			add(&window, batch->entries[i].verdict == PP_VERDICT_DEAD);
	if (window.failed > MIN_FAILED && window.failed > a->error_threshold * window.n)
		stop(a, window.failed, window.n, last);
}

/*
 * pp_threshold_foresee
 *		While a batch is split: throws when so many of its n entries have failed that it is too much
 *		even if all others pass.
 */
void
pp_threshold_foresee(PpApply *a, int failed, int n, const PpEntryError *last)
{
	if (failed > MIN_FAILED && failed > a->error_threshold * Max(n, PP_WINDOW_ENTRIES))
		stop(a, failed, n, last);
}

/* The batch was rolled back for it: remembers what to say while the pipeline is stopped. */
void
pp_threshold_stopped(PpApply *a, PpEntryError *error)
{
	MemoryContext old;

	a->stopped = true;
	error->reason_code = "error_threshold";
	error->entry_sqlstate = a->last_sqlstate;
	MemoryContextReset(a->stop_cxt);
	old = MemoryContextSwitchTo(a->stop_cxt);
	a->stop_error = palloc0(sizeof(PpEntryError));
	a->stop_error->sqlstate = error->sqlstate;
	a->stop_error->entry_sqlstate = error->entry_sqlstate;
	a->stop_error->reason_code = error->reason_code;
	a->stop_error->message = pstrdup(error->message);
	a->stop_error->hint = error->hint ? pstrdup(error->hint) : NULL;
	MemoryContextSwitchTo(old);
}
