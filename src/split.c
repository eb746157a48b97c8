/*
 * split.c
 *		A batch that is known to fail: isolate first, then judge.
 *
 * The batch is split in halves, each run in a subtransaction, until the entries that fail alone are
 * found: for one of n, at most 2 log2(n) + 2 runs of the statement in all.  After
 * MAX_SUBTRANSACTIONS successful parts what is decided so far is committed, and the rest goes on in
 * a new transaction.
 *
 * An entry is dead only if it fails while others pass, or the statement at least runs over nothing:
 * pipeline_is_at_fault().  When the pipeline is at fault, nothing is dead-lettered.
 */
#include "apply_internal.h"

#include "access/xact.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timeout.h"

#include "errors.h"
#include "event.h"
#include "guc.h"
#include "inflight.h"

#define MAX_SUBTRANSACTIONS 32 /* in a transaction; more than 64 XIDs overflow a proc's cache */
#define MAX_HOPELESS_RUNS   24 /* failures of the pipeline's kind with no success between */
#define SAMPLES             8  /* entries that are tried before the pipeline is found at fault */

/* A part of the batch that is still to be run while it is split. */
typedef struct Part
{
	int first;
	int end;
	bool known_bad; /* the whole was, and the other half was not */
	bool is_left;   /* its right half is the part below it on the stack */
} Part;

typedef struct Split
{
	PpEntry **open; /* entries without a verdict, by wave and stream order */
	int n;
	Part *stack;
	int depth;
	int successes;    /* runs that passed */
	int hopeless;     /* failures of the pipeline's kind of single entries */
	bool sampled;     /* sample_passes() was asked */
	int other_errors; /* failures of single entries of other kinds */
} Split;

/*
 * Runs one part in a subtransaction, keeps what it did if `keep`.  Returns NULL, or the error it
 * failed with.  With n = 0 the statement runs over nothing.
 */
static PpEntryError *
run_part(PpApply *a, PpBatch *batch, PpEntry **entries, int n, bool keep, PpApplyResult *result)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int conflicted = result->conflicted;
	PpEntryError *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		if (n > 0)
			pp_apply_run_waves(a, entries, n, false, result);
		else
			(void) pp_statement_run(a->statement, NULL, 0, false);
		if (keep)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		error = pp_apply_take_error(a, a->call_cxt);
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	if (error != NULL || !keep)
	{
		result->conflicted = conflicted;
		for (int i = 0; i < n; i++)
			entries[i]->verdict = PP_VERDICT_OPEN;
	}
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return error;
}

static void
push_halves(Split *split, int first, int end)
{
	int mid = (first + end) / 2;

	split->stack[split->depth++] = (Part){mid, end, false, false};
	split->stack[split->depth++] = (Part){first, mid, false, true};
}

/*
 * Takes the next part from the stack and runs it, or splits it when it is known to fail.
 * Returns the error of the moment that makes it pointless to go on, or NULL.
 */
static PpEntryError *
split_step(PpApply *a, PpBatch *batch, Split *split, PpApplyResult *result)
{
	Part part = split->stack[--split->depth];
	PpEntry **entries = split->open + part.first;
	int n = part.end - part.first;
	PpEntryError *error;

	if (n == 0)
		return NULL;
	if (part.known_bad && n > 1)
	{
		push_halves(split, part.first, part.end);
		return NULL;
	}
	error = run_part(a, batch, entries, n, true, result);
	if (error == NULL)
	{
		split->successes++;
		/* The whole failed and its left half did not: then the right half need not be run whole. */
		if (part.is_left)
			split->stack[split->depth - 1].known_bad = true;
		return NULL;
	}
	result->error = error;
	if (pp_fault_of(error) == PP_FAULT_MOMENT)
		return error;
	if (n > 1)
	{
		push_halves(split, part.first, part.end);
		return NULL;
	}
	if (pp_fault_of(error) == PP_FAULT_PIPELINE)
		split->hopeless++;
	else
		split->other_errors++;
	entries[0]->verdict = PP_VERDICT_DEAD;
	entries[0]->error = error;
	return NULL;
}

/* Does any of a few entries from all over the batch pass?  Whatever they do is rolled back. */
static bool
sample_passes(PpApply *a, PpBatch *batch, Split *split, PpApplyResult *result)
{
	for (int i = 0; i < SAMPLES; i++)
	{
		PpEntry **entry = &split->open[(int) ((int64) split->n * i / SAMPLES)];
		PpVerdict verdict = (*entry)->verdict;
		bool passes = run_part(a, batch, entry, 1, false, result) == NULL;

		(*entry)->verdict = verdict;
		if (passes)
			return true;
	}
	return false;
}

/*
 * Nothing has passed so far.  Is the pipeline at fault, and not the entries?  It is when the
 * statement fails on nothing, or when most failures are of the pipeline's kind.  An entry that was
 * alone in its batch cannot be compared with others: it gets some attempts first.
 */
static bool
pipeline_is_at_fault(PpApply *a, PpBatch *batch, Split *split, PpApplyResult *result)
{
	PpEntryError *error = run_part(a, batch, NULL, 0, false, result);

	if (error != NULL)
		result->error = error;
	if (error != NULL || (split->n > 1 && split->hopeless > split->other_errors))
		return true;
	if (split->n > 1 || split->hopeless == 0)
		return false;
	if (pp_id_compare(a->lone_id, split->open[0]->id) != 0)
		a->lone_attempts = 0;
	a->lone_id = split->open[0]->id;
	return a->lone_attempts++ < pp_guc_max_retries;
}

/* One transaction of the split. Sets *done when nothing is left. */
static PpOutcome
split_transaction(PpApply *a, PpBatch *batch, Split *split, PpApplyResult *result)
{
	PpOutcome volatile outcome = PP_OUTCOME_DONE;

	PG_TRY();
	{
		PpEntryError *error = NULL;
		int start = split->successes;

		if (!pp_apply_begin(a))
			outcome = PP_OUTCOME_GONE;
		else
		{
			pp_statement_prepare(a->statement);
			while (split->depth > 0 && error == NULL &&
				   split->successes - start < MAX_SUBTRANSACTIONS)
			{
				error = split_step(a, batch, split, result);
				if (error == NULL && split->successes == 0 && !split->sampled &&
					split->hopeless >= MAX_HOPELESS_RUNS)
				{
					split->sampled = true;
					if (!sample_passes(a, batch, split, result))
						break;
				}
			}
			if (error != NULL)
				outcome = PP_OUTCOME_MOMENT;
			else if (split->successes == 0 && pipeline_is_at_fault(a, batch, split, result))
				outcome = PP_OUTCOME_PIPELINE;
		}
		if (outcome == PP_OUTCOME_DONE)
		{
			pp_apply_finish(a, batch, result);
		}
		else
		{
			AbortOutOfAnyTransaction();
			pp_inflight_clear();
			MemoryContextSwitchTo(a->call_cxt);
			pp_apply_reopen(batch);
		}
	}
	PG_CATCH();
	{
		result->error = pp_apply_roll_back(a, a->call_cxt);
		pp_apply_reopen(batch);
		outcome = pp_apply_outcome_of(result->error);
	}
	PG_END_TRY();
	return outcome;
}

/* The batch is known to fail: finds the entries that do, and applies the others. */
PpOutcome
pp_apply_split(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	Split split = {0};
	PpOutcome outcome = PP_OUTCOME_DONE;

	split.n = pp_apply_collect_open(a, batch, &split.open);
	qsort(split.open, split.n, sizeof(PpEntry *), pp_apply_compare_waves);
	split.stack = MemoryContextAlloc(a->call_cxt, 2 * (split.n + 1) * sizeof(Part));
	split.stack[split.depth++] = (Part){0, split.n, true, false};
	while (split.depth > 0 && outcome == PP_OUTCOME_DONE)
		outcome = split_transaction(a, batch, &split, result);
	return outcome;
}
