/*
 * consume_apply.c
 *		A batch that was received: its entries become events, are settled, and counted.
 *
 * However long that takes: what fails is tried again with back-off (worker_failure.c), until the worker is to
 * stop.  The connection may be closed meanwhile.
 */
#include "worker_internal.h"

#include "access/xlog.h"
#include "pgstat.h"
#include "utils/memutils.h"

#include "event.h"
#include "held.h"
#include "process.h"
#include "stats.h"
#include "suspect.h"

#define NORMALIZE_TRIES 5 /* when the server is out of memory */

/*
 * Normalizes and hashes the entries of a batch that was just read.  Returns NULL, or an error that may
 * not be the entry's fault: then this can be called again.
 */
PpEntryError *
pp_consume_normalize(PpWorker *w, PpBatch *batch)
{
	MemoryContext old = MemoryContextSwitchTo(batch->cxt);
	PpEntryError *error = NULL;

	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];

		entry->hash = pp_event_hash(entry);
		pp_event_normalize(entry, w->def->event_types);
		if (pp_event_is_unsure(entry))
			error = entry->error;
	}
	MemoryContextSwitchTo(old);
	return error;
}

static void
count_result(PpWorker *w, const PpApplyResult *r)
{
	pp_count(w->pipe, PP_COUNT_APPLIED, r->applied);
	pp_count(w->pipe, PP_COUNT_CONFLICTED, r->conflicted);
	pp_count(w->pipe, PP_COUNT_FILTERED, r->filtered);
	pp_count(w->pipe, PP_COUNT_DEDUPLICATED, r->duplicates);
	pp_count(w->pipe, PP_COUNT_DEAD, r->dead);
	pp_count(w->pipe, PP_COUNT_RETRIED, r->retried);
	pp_count(w->pipe, PP_COUNT_LOST, r->lost);
}

/* A part of a batch is settled, by a call that began at `start`. */
static void
observe(PpWorker *w, const PpBatch *part, const PpApplyResult *r, PpSteady start)
{
	int failed = r->dead + r->retried;

	pp_pipe_observe_since(w->pipe, PP_HIST_UPSERT, start);
	if (failed < part->n)
		pp_pipe_observe(w->pipe, PP_HIST_PROCESSED, part->n - failed);
	if (failed > 0)
		pp_pipe_observe(w->pipe, PP_HIST_FAILED, failed);
	pp_pipe_observe_ages(w->pipe, part);
}

/* Settles a part of a batch, however long it takes; *lsn is what has to be durable then. */
static void
apply_part(PpWorker *w, PpBatch *part, XLogRecPtr *lsn)
{
	bool condemned = part->n == 1 && pp_suspect_condemn(part->cxt, part->entries);

	for (;;)
	{
		PpApplyResult result;
		PpOutcome outcome;
		PpSteady start = pp_steady_now();

		outcome = pp_apply_batch(w->apply, part, part->look_up, &result);
		count_result(w, &result);
		pp_pipe_retry_at(w->pipe, result.retry_at);
		if (outcome == PP_OUTCOME_GONE)
			pp_worker_outdated(w);
		if (outcome == PP_OUTCOME_DONE)
		{
			pp_count(w->pipe, PP_COUNT_BATCHES, 1);
			observe(w, part, &result, start);
			pp_pipe_applied(w->pipe, part->entries[part->n - 1].id);
			if (condemned) /* before the next suspect can crash */
				XLogFlush(result.lsn);
			*lsn = result.lsn;
			return;
		}
		pp_worker_apply_failed(w, outcome, result.error);
	}
}

/* Settles all of a batch, however long it takes, and keeps its IDs to be acknowledged. */
void
pp_consume_apply(PpWorker *w, PpBatch *batch)
{
	int hand = (int) (batch - w->batches);
	XLogRecPtr lsn = InvalidXLogRecPtr;
	PpEntryError *error;
	PpSteady start = pp_steady_now();

	/* One that fails more often becomes a letter, which has its chances as well. */
	for (int i = 0; (error = pp_consume_normalize(w, batch)) != NULL && i < NORMALIZE_TRIES; i++)
		pp_worker_apply_failed(w, PP_OUTCOME_MOMENT, error);
	while (batch->look_up && pp_held_must_wait(w->pipe, hand))
	{
		pp_process_sleep(20, PP_WAIT_WORKER_RETRY);
		pp_worker_look_around(w);
	}
	pp_report_batch(batch);
	pp_process_activity(true, "applying a batch");
	for (int first = 0, end; first < batch->n; first = end)
	{
		PpBatch part = *batch;

		if (first > 0)
			pp_worker_look_around(w);
		end = pp_suspect_part_end(batch, first);
		part.entries += first;
		part.n = end - first;
		apply_part(w, &part, &lsn);
	}
	pp_acks_keep(w, batch, lsn);
	pp_held_release(w->pipe, hand);
	pgstat_report_stat(false);
	pp_report_batch(NULL);
	pp_pipe_observe_since(w->pipe, PP_HIST_BATCH, start);
}
