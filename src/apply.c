/*
 * apply.c
 *		A batch of entries through the pipeline's statement, in one transaction: the statement's
 *		rows, the ledger's record of the entries, and the dead letters.
 *
 * A good batch takes one run of the statement and no subtransaction.  When the run fails, the
 * transaction is rolled back and the error is looked at (errors.c).  What is the moment's goes back
 * to the caller; when the statement fails on an empty batch, too, the pipeline is at fault; else
 * the batch is split to find the entries that fail (split.c).
 *
 * This module takes a batch and knows no Redis.
 */
#include "apply_internal.h"

#include "utils/memutils.h"

#include "errors.h"
#include "fault.h"
#include "guc.h"
#include "inflight.h"
#include "stats.h"
#include "suspect.h"

#define MIN_BATCHES_WANTED 4 /* without a conflict, before a plain insert is tried again */
#define MAX_BATCHES_WANTED 256

/*
 * For a worker of a pipeline; everything lives in `cxt`.  pp_apply_open() comes next, and before the
 * first batch pp_apply_prepare().
 */
PpApply *
pp_apply_create(MemoryContext cxt, const PpExtension *ext, PpPipeline *pipeline, int worker)
{
	PpApply *a = MemoryContextAllocZero(cxt, sizeof(PpApply));

	a->cxt = cxt;
	a->call_cxt = AllocSetContextCreate(cxt, "postpipe apply", ALLOCSET_DEFAULT_SIZES);
	a->ext = ext;
	a->pipeline = pipeline;
	a->ledger.cxt = cxt;
	a->ledger.ext = ext;
	a->ledger.pipeline = pipeline->name;
	a->ledger.worker = worker;
	a->sample_cxt = AllocSetContextCreate(cxt, "postpipe sample", ALLOCSET_SMALL_SIZES);
	a->stop_cxt = AllocSetContextCreate(cxt, "postpipe stop", ALLOCSET_SMALL_SIZES);
	pp_threshold_init(a);
	pp_notify_init(a);
	a->batches_wanted = a->batches_without_conflict = MIN_BATCHES_WANTED;
	return a;
}

Oid
pp_apply_role(const PpApply *a)
{
	return a->statement ? pp_statement_role(a->statement) : InvalidOid;
}

/*
 * pp_apply_open
 *		Opens the ledger.  A PpWork; *mark, a PpId, becomes the ID above which nothing is on record
 *		that counts.  May be called again.
 */
void
pp_apply_open(PpApply *a, void *mark)
{
	*(PpId *) mark = pp_ledger_open(&a->ledger);
	pp_threshold_load(a);
}

/*
 * pp_apply_prepare
 *		Makes the target of the built-in pipeline when it is missing, and prepares the statement.  In a
 *		transaction of pp_apply_transaction(); may be called again.
 */
void
pp_apply_prepare(PpApply *a)
{
	if (a->statement == NULL)
		a->statement = pp_statement_create(a->cxt, a->ext, a->pipeline);
	if (pp_posts_owns(a->pipeline))
		pp_posts_create_table(a->ext, a->pipeline);
	CommandCounterIncrement();
	pp_statement_prepare(a->statement);
	pp_statement_note_key(a->statement);
	pp_overtaken_load(a);
}

/* The ledger that batches are recorded in. */
PpLedger *
pp_apply_ledger(PpApply *a)
{
	return &a->ledger;
}

/* Writes ledger and dead letters for the entries that have a verdict and are not settled yet. */
static void
record(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	PpEntry **decided = palloc(Max(batch->n, 1) * sizeof(PpEntry *));
	int n = 0;

	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];
		uint64 key_hash;
		bool has_key;

		if (entry->settled || entry->verdict == PP_VERDICT_OPEN ||
			(entry->verdict == PP_VERDICT_DUPLICATE && entry->on_record == a->ledger.epoch))
			continue;
		decided[n++] = entry;
		if (entry->verdict != PP_VERDICT_DEAD)
			continue;
		has_key = pp_overtaken_key(a, entry, &key_hash);
		if (entry->skipped == 0 ||
			!pp_dead_letter_deliver(&a->ledger, entry, has_key ? &key_hash : NULL))
			pp_dead_letter_store(&a->ledger, a->pipeline, entry, has_key ? &key_hash : NULL,
								 &result->retry_at);
		PP_FAULT("after_dead_letter");
	}
	pp_ledger_record(&a->ledger, decided, n);
	if (n > 0)
		PP_FAULT("after_ledger");
	pfree(decided);
}

/* The transaction is committed: what has a verdict is settled, and counted. */
static void
settle(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	PpEntry *passed = NULL;

	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];

		if (entry->settled || entry->verdict == PP_VERDICT_OPEN)
			continue;
		entry->settled = true;
		passed = entry->verdict == PP_VERDICT_APPLIED ? entry : passed;
		result->applied += entry->verdict == PP_VERDICT_APPLIED;
		result->filtered += entry->verdict == PP_VERDICT_FILTERED;
		result->duplicates += entry->verdict == PP_VERDICT_DUPLICATE;
		if (entry->verdict == PP_VERDICT_DUPLICATE && entry->on_record < a->ledger.epoch)
			a->pipe->carried = true;
		if (entry->verdict == PP_VERDICT_DEAD && !entry->retrying)
		{
			result->dead++;
			pp_pipe_count_error(a->pipe, entry->error->sqlstate);
		}
		result->retried += entry->verdict == PP_VERDICT_DEAD && entry->retrying;
		result->lost += entry->verdict == PP_VERDICT_GONE;
	}
	if (passed != NULL)
		pp_sample_keep(a, passed);
}

/* Puts what was decided on record, commits, and counts it. */
void
pp_apply_finish(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	pp_threshold_check(a, batch);
	if (a->retrying)
		pp_retry_record(a, batch, false);
	else
		record(a, batch, result);
	pp_overtaken_mark(a, batch);
	pp_notify_batch(a, batch);
	pp_suspect_note_commit(batch);
	PP_FAULT("before_commit");
	result->lsn = pp_apply_commit(a->call_cxt);
	PP_FAULT("after_commit");
	pp_inflight_committed();
	pp_ledger_committed(&a->ledger);
	pp_threshold_end(a, true);
	settle(a, batch, result);
}

/* The transaction was rolled back: what only a run decided is open again. */
void
pp_apply_reopen(PpBatch *batch)
{
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];

		if (entry->settled || entry->event == NULL || (entry->error && entry->error->final))
			continue;
		if (entry->verdict == PP_VERDICT_APPLIED || entry->verdict == PP_VERDICT_DEAD)
		{
			entry->verdict = PP_VERDICT_OPEN;
			entry->error = NULL;
		}
	}
}

/* The open entries, in an array that lives as long as the call. */
int
pp_apply_collect_open(PpApply *a, PpBatch *batch, PpEntry ***open)
{
	int n = 0;

	*open = MemoryContextAlloc(a->call_cxt, Max(batch->n, 1) * sizeof(PpEntry *));
	for (int i = 0; i < batch->n; i++)
		if (batch->entries[i].verdict == PP_VERDICT_OPEN)
			(*open)[n++] = &batch->entries[i];
	return n;
}

/*
 * The good path: everything in one transaction and, but for repeated keys, in one run.  With
 * *plain the rows are taken to be new; it is set to whether that was tried.
 */
static PpOutcome
try_whole(PpApply *a, PpBatch *batch, bool look_up, bool *plain, PpApplyResult *result)
{
	PpOutcome volatile outcome = PP_OUTCOME_DONE;
	int conflicted = result->conflicted;
	bool may_be_plain = *plain;

	*plain = false;
	a->looked_up = !look_up;

	PG_TRY();
	{
		PpEntry **open;
		int n;

		if (pp_apply_begin(a))
		{
			if (a->retrying)
				pp_retry_lock(a, batch, true);
			if (look_up)
				pp_ledger_lookup_batch(&a->ledger, batch);
			a->looked_up = true;
			if (!a->retrying)
				(void) pp_skip_find(a, batch);
			n = pp_apply_collect_open(a, batch, &open);
			if (n > 0)
			{
				pp_statement_prepare(a->statement);
				*plain = pp_apply_number_waves(pp_statement_key(a->statement), open, n) == 0 &&
						 may_be_plain && pp_statement_has(a->statement, PP_FORM_PLAIN);
				pp_apply_run_waves(a, open, n, *plain, result);
				if (a->stopped && !a->retrying)
					pp_threshold_reset(a);
			}
			pp_apply_finish(a, batch, result);
		}
		else
		{
			pp_apply_abort(a->call_cxt);
			outcome = PP_OUTCOME_GONE;
		}
	}
	PG_CATCH();
	{
		result->error = pp_apply_roll_back(a, a->call_cxt);
		result->conflicted = conflicted;
		pp_apply_reopen(batch);
		outcome = pp_apply_outcome_of(result->error);
	}
	PG_END_TRY();
	return outcome;
}

static void
run_nothing(PpApply *a, void *arg)
{
	pp_statement_prepare(a->statement);
	(void) pp_statement_run(a->statement, NULL, 0, PP_FORM_WHOLE);
}

/* Does the statement fail even with nothing to do?  Then no entry is to blame. */
static bool
fails_on_nothing(PpApply *a, PpApplyResult *result)
{
	PpEntryError *error;

	(void) pp_apply_transaction(a, run_nothing, NULL, false, &error);
	if (error != NULL)
		result->error = error;
	return error != NULL;
}

/*
 * try_whole(), as a plain insert at first while that is likely to succeed: an insert that has to
 * be ready for a conflict takes a third longer.  It is likely after some batches in which nothing
 * conflicted; the more often it has failed, the more of them.
 */
static PpOutcome
try_cheaply(PpApply *a, PpBatch *batch, bool look_up, PpApplyResult *result)
{
	bool plain = a->batches_without_conflict >= a->batches_wanted;
	PpOutcome outcome = try_whole(a, batch, look_up, &plain, result);

	if (plain && outcome == PP_OUTCOME_PIPELINE && pp_statement_key(a->statement) != NIL &&
		result->error->sqlstate == ERRCODE_UNIQUE_VIOLATION)
	{
		a->batches_wanted = Min(2 * a->batches_wanted, MAX_BATCHES_WANTED);
		plain = false;
		outcome = try_whole(a, batch, look_up, &plain, result);
	}
	if (outcome == PP_OUTCOME_DONE && result->conflicted == 0)
		a->batches_without_conflict++;
	else
		a->batches_without_conflict = 0;
	return outcome;
}

/* The batch fails, and neither the moment nor the pipeline alone is to blame: may it be split? */
static bool
may_split(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	PpEntry **open;

	/* Nothing was run, and the statement may not be there yet: neither is to blame. */
	if (pp_apply_collect_open(a, batch, &open) == 0)
		return false;
	if (pp_fault_of(result->error) != PP_FAULT_ENTRY && fails_on_nothing(a, result))
		return false;
	if (!a->stopped || a->retrying)
		return true;
	if (pp_apply_samples_pass(a, batch, result))
	{
		pp_threshold_reset(a);
		return true;
	}
	result->error = a->stop_error;
	return false;
}

/* Something outside was out of reach each time: is it time to see whether one entry is why? */
static bool
outside_persists(const PpApply *a)
{
	int attempts = a->outside[a->retrying].attempts;

	return attempts > 0 &&
		   attempts >= pp_pipeline_option_int(a->pipeline, "max_retries", pp_guc_max_retries);
}

/* Counts the attempts in a row that failed so, with errors of one class. */
static void
note_outside(PpApply *a, PpOutcome outcome, const PpApplyResult *result)
{
	PpOutside *o = &a->outside[a->retrying];
	bool is_outside = outcome == PP_OUTCOME_MOMENT && !a->persists &&
					  pp_fault_of(result->error) == PP_FAULT_OUTSIDE;
	int class = is_outside ? ERRCODE_TO_CATEGORY(result->error->sqlstate) : 0;

	o->attempts = !is_outside ? 0 : class == o->class ? o->attempts + 1 : 1;
	o->class = class;
}

/*
 * pp_apply_batch
 *		Settles the entries of a batch, those that an earlier call has not.  The entries must be
 *		normalized and hashed.  look_up asks the ledger which of them are settled already.  Must be
 *		called outside a transaction.  Never throws for an error of the statement; *result says
 *		what was done.
 */
PpOutcome
pp_apply_batch(PpApply *a, PpBatch *batch, bool look_up, PpApplyResult *result)
{
	MemoryContext old = MemoryContextSwitchTo(a->call_cxt);
	PpOutcome outcome;
	bool plain = false;

	MemoryContextReset(a->call_cxt);
	memset(result, 0, sizeof(*result));
	a->over = false;
	a->persists = outside_persists(a);
	if (a->retrying)
		outcome = try_whole(a, batch, false, &plain, result);
	else
		outcome = try_cheaply(a, batch, look_up, result);
	if (a->looked_up && !a->over &&
		(outcome == PP_OUTCOME_PIPELINE || (outcome == PP_OUTCOME_MOMENT && a->persists &&
											pp_fault_of(result->error) == PP_FAULT_OUTSIDE)))
		outcome = may_split(a, batch, result) ? pp_apply_split(a, batch, result)
											  : pp_apply_outcome_of(result->error);
	note_outside(a, outcome, result);
	if (outcome == PP_OUTCOME_PIPELINE && a->over)
		pp_threshold_stopped(a, result->error);
	MemoryContextSwitchTo(old);
	return outcome;
}
