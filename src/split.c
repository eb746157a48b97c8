/*
 * split.c
 *		A batch that is known to fail: isolate first, then judge.
 *
 * The batch is split in halves, each run in a subtransaction, in the order of the stream, until the
 * entries that fail alone are found: for one of n, at most 2 log2(n) + 2 runs of the statement in all.  After
 * MAX_SUBTRANSACTIONS successful parts what is decided so far is committed, and the rest goes on in
 * a new transaction.
 *
 * The same is done with a batch of dead letters that are tried again (retry.c), and in a backend for
 * a replay, which has a transaction of its own (pp_apply_isolate()).
 *
 * Where the server can tell values that do not fit their types without an error (from 16 on), one
 * query finds the entries that have them: these run alone, and the others together.
 *
 * An entry is dead only if it fails while others pass, or an entry that passed before still does:
 * pipeline_is_at_fault().  When the pipeline is at fault, nothing is dead-lettered.
 */
#include "apply_internal.h"

#include "utils/memutils.h"

#include "errors.h"
#include "guc.h"
#include "suspect.h"

#define MAX_SUBTRANSACTIONS 32 /* in a transaction; more than 64 XIDs overflow a proc's cache */
#define MAX_HOPELESS_RUNS   24 /* failures of the pipeline's kind with no success between */

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
	PpEntry **open; /* entries without a verdict, in the order in which they take effect */
	int n;
	Part *stack;
	int depth;
	int successes;    /* runs that passed */
	int hopeless;     /* failures of single entries that is_hopeless() */
	bool sampled;     /* sample_passes() was asked */
	bool checked;     /* find_bad_values() was asked */
	int other_errors; /* failures of single entries of other kinds */
} Split;

/* What run_entries() is given. */
typedef struct Run
{
	PpEntry **entries;
	int n;
	PpApplyResult *result;
} Run;

/* In waves of its own: the parts stay in their order, whatever becomes of this one. */
static void
run_entries(PpApply *a, void *arg)
{
	Run *run = arg;
	PpEntry **entries;

	if (run->n == 0)
	{
		(void) pp_statement_run(a->statement, NULL, 0, PP_FORM_WHOLE);
		return;
	}
	entries = palloc(run->n * sizeof(PpEntry *));
	memcpy(entries, run->entries, run->n * sizeof(PpEntry *));
	(void) pp_apply_number_waves(pp_statement_key(a->statement), entries, run->n);
	pp_apply_run_waves(a, entries, run->n, false, run->result);
	pfree(entries);
}

/*
 * pp_apply_run_part
 *		Runs one part of a batch in a subtransaction, keeps what it did if `keep`.  Returns NULL, or the
 *		error it failed with.  With n = 0 the statement runs over nothing.
 */
PpEntryError *
pp_apply_run_part(PpApply *a, PpEntry **entries, int n, bool keep, PpApplyResult *result)
{
	Run run = {entries, n, result};
	int conflicted = result->conflicted;
	PpEntryError *error = pp_apply_subtransaction(a, run_entries, &run, keep);

	if (error != NULL || !keep)
	{
		result->conflicted = conflicted;
		for (int i = 0; i < n; i++)
			entries[i]->verdict = PP_VERDICT_OPEN;
	}
	return error;
}

static void
push_halves(Split *split, int first, int end)
{
	int mid = (first + end) / 2;

	split->stack[split->depth++] = (Part){mid, end, false, false};
	split->stack[split->depth++] = (Part){first, mid, false, true};
}

/* Is it pointless to go on with the others? */
static bool
is_moment(const PpApply *a, const PpEntryError *error)
{
	PpFault fault = pp_fault_of(error);

	return fault == PP_FAULT_MOMENT || (fault == PP_FAULT_OUTSIDE && !a->persists);
}

/* May the pipeline, or what it needs, be to blame for it? */
static bool
is_hopeless(const PpEntryError *error)
{
	return pp_fault_of(error) == PP_FAULT_PIPELINE || pp_fault_of(error) == PP_FAULT_OUTSIDE;
}

/*
 * Takes the next part from the stack and runs it, or splits it when it is known to fail.
 * Returns the error of the moment that makes it pointless to go on, or NULL.
 */
static PpEntryError *
split_step(PpApply *a, Split *split, PpApplyResult *result)
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
	error = pp_apply_run_part(a, entries, n, true, result);
	if (error == NULL)
	{
		split->successes++;
		/* The whole failed and its left half did not: then the right half need not be run whole. */
		if (part.is_left)
			split->stack[split->depth - 1].known_bad = true;
		return NULL;
	}
	result->error = error;
	if (is_moment(a, error))
		return error;
	if (n > 1)
	{
		push_halves(split, part.first, part.end);
		return NULL;
	}
	if (is_hopeless(error))
		split->hopeless++;
	else
		split->other_errors++;
	entries[0]->verdict = PP_VERDICT_DEAD;
	entries[0]->error = error;
	/* Of the pipeline's kind: it will be judged when all is known. */
	if (entries[0]->letter == NULL && split->hopeless <= split->other_errors)
		pp_threshold_foresee(a, split->hopeless + split->other_errors, split->n, error);
	return NULL;
}

/* Does any of a few entries from all over the batch pass?  Whatever they do is rolled back. */
static bool
sample_passes(PpApply *a, Split *split, PpApplyResult *result)
{
	for (int i = 0; i < PP_SAMPLES; i++)
	{
		PpEntry **entry = &split->open[(int) ((int64) split->n * i / PP_SAMPLES)];
		PpVerdict verdict = (*entry)->verdict;
		bool passes = pp_apply_run_part(a, entry, 1, false, result) == NULL;

		(*entry)->verdict = verdict;
		if (passes)
			return true;
	}
	return false;
}

/*
 * Letters are known to fail, so that all of them do says little.  The pipeline is at fault when all
 * errors are of its kind, and new to the entry that has it.
 */
static bool
letters_say_pipeline(const Split *split)
{
	for (int i = 0; i < split->n; i++)
	{
		const PpEntry *entry = split->open[i];

		if (entry->verdict == PP_VERDICT_DEAD &&
			(pp_fault_of(entry->error) != PP_FAULT_PIPELINE ||
			 entry->error->sqlstate == entry->letter->sqlstate))
			return false;
	}
	return true;
}

/* An entry that cannot be compared with any other gets some attempts before it is to blame. */
static bool
may_try_again(PpApply *a, const PpEntry *entry)
{
	if (pp_id_compare(a->lone_id, entry->id) != 0)
		a->lone_attempts = 0;
	a->lone_id = entry->id;
	return a->lone_attempts++ <
		   pp_pipeline_option_int(a->pipeline, "max_retries", pp_guc_max_retries);
}

/*
 * Nothing has passed so far.  Is the pipeline at fault, and not the entries?  It is when the
 * statement fails on nothing, or when most of several failures are of the pipeline's kind.  Else an
 * entry that passed before tells (sample.c), if it can.  Letters are not to blame while nothing has
 * passed since the process began.
 */
static bool
pipeline_is_at_fault(PpApply *a, Split *split, PpApplyResult *result)
{
	PpEntryError *error = pp_apply_run_part(a, NULL, 0, false, result);
	PpSample sample;

	if (error != NULL)
	{
		result->error = error;
		return true;
	}
	if (split->hopeless == 0)
		return false;
	if (!a->retrying && split->n > 1 && split->hopeless > split->other_errors)
		return true;
	sample = pp_sample_run(a, &error);
	if (sample == PP_SAMPLE_FAILS)
		result->error = error;
	if (sample == PP_SAMPLE_PASSES || sample == PP_SAMPLE_FAILS)
		return sample == PP_SAMPLE_FAILS;
	if (a->persists) /* what is out of reach is so for any way that an entry takes */
		return sample != PP_SAMPLE_PASSES_SOMEHOW;
	if (a->retrying)
		return a->sample == NULL || letters_say_pipeline(split);
	return split->n == 1 && may_try_again(a, split->open[0]);
}

/* What check_values() is given. */
typedef struct Check
{
	PpEntry **entries;
	int n;
	bool *bad;
} Check;

static void
check_values(PpApply *a, void *arg)
{
	Check *check = arg;

	pp_suspect_note(check->entries, check->n);
	pp_statement_find_bad(a->statement, check->entries, check->n, check->bad);
}

/* Is it the first error of class 22 (data)?  Then one query tells which values have such errors. */
static bool
may_find_bad_values(PpApply *a, const Split *split, const PpApplyResult *result)
{
	return !split->checked && split->n > 1 && pp_statement_has(a->statement, PP_FORM_CHECK) &&
		   ERRCODE_TO_CATEGORY(result->error->sqlstate) == ERRCODE_DATA_EXCEPTION;
}

/* Puts the entries that are bad first, the other open ones next, and those with a verdict last. */
static void
sort_by_badness(Split *split, PpEntry **open, const bool *bad, int n)
{
	PpEntry **sorted = palloc(split->n * sizeof(PpEntry *));
	int at = 0;

	for (int i = 0; i < n; i++)
		if (bad[i])
			sorted[at++] = open[i];
	for (int i = 0; i < n; i++)
		if (!bad[i])
			sorted[at++] = open[i];
	for (int i = 0; i < split->n; i++)
		if (split->open[i]->verdict != PP_VERDICT_OPEN)
			sorted[at++] = split->open[i];
	memcpy(split->open, sorted, split->n * sizeof(PpEntry *));
	pfree(sorted);
}

/*
 * Finds in one pass those of the open entries whose values cannot be converted: they are run alone, and
 * the others together after them.  An error here only means that they have to be found in another way.
 */
static void
find_bad_values(PpApply *a, Split *split)
{
	bool *bad = palloc0(split->n * sizeof(bool));
	PpEntry **open = palloc(split->n * sizeof(PpEntry *));
	Check check = {open, 0, bad};
	int num_bad = 0;

	split->checked = true;
	for (int i = 0; i < split->n; i++)
		if (split->open[i]->verdict == PP_VERDICT_OPEN)
			open[check.n++] = split->open[i];
	if (pp_apply_subtransaction(a, check_values, &check, false) == NULL)
		for (int i = 0; i < check.n; i++)
			num_bad += bad[i];
	if (num_bad > 0)
	{
		sort_by_badness(split, open, bad, check.n);
		split->depth = 0;
		split->stack[split->depth++] = (Part){num_bad, check.n, false, false};
		for (int i = num_bad; i > 0; i--)
			split->stack[split->depth++] = (Part){i - 1, i, false, false};
	}
	pfree(open);
	pfree(bad);
}

/* One transaction of the split. */
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
			if (a->retrying)
				pp_retry_lock(a, batch, false);
			else if (pp_skip_find(a, batch) > 0)
				ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
								errmsg("somebody has skipped entries of the batch meanwhile")));
			while (split->depth > 0 && error == NULL &&
				   split->successes - start < MAX_SUBTRANSACTIONS)
			{
				if (may_find_bad_values(a, split, result))
					find_bad_values(a, split);
				error = split_step(a, split, result);
				if (error == NULL && split->successes == 0 && !split->sampled &&
					split->hopeless >= MAX_HOPELESS_RUNS)
				{
					split->sampled = true;
					if (!sample_passes(a, split, result))
						break;
				}
			}
			if (error != NULL)
				outcome = PP_OUTCOME_MOMENT;
			else if (split->successes == 0 && pipeline_is_at_fault(a, split, result))
				outcome = pp_apply_outcome_of(result->error);
		}
		if (outcome == PP_OUTCOME_DONE)
		{
			pp_apply_finish(a, batch, result);
		}
		else
		{
			pp_apply_abort(a->call_cxt);
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

static void
start_split(PpApply *a, PpBatch *batch, Split *split, bool known_bad)
{
	split->n = pp_apply_collect_open(a, batch, &split->open);
	qsort(split->open, split->n, sizeof(PpEntry *), pp_apply_compare_order);
	split->stack = MemoryContextAlloc(a->call_cxt, 2 * (split->n + 1) * sizeof(Part));
	split->stack[split->depth++] = (Part){0, split->n, known_bad, false};
}

/* The batch is known to fail: finds the entries that do, and applies the others. */
PpOutcome
pp_apply_split(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	Split split = {0};
	PpOutcome outcome = PP_OUTCOME_DONE;

	start_split(a, batch, &split, true);
	while (split.depth > 0 && outcome == PP_OUTCOME_DONE)
		outcome = split_transaction(a, batch, &split, result);
	return outcome;
}

/*
 * pp_apply_isolate
 *		In a backend: runs the open entries of a batch in the caller's transaction, with SPI connected
 *		and the statement prepared, and finds those that fail.  Returns NULL, or the error that says
 *		nothing of an entry: then it must be thrown.
 */
PpEntryError *
pp_apply_isolate(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	Split split = {0};
	PpEntryError *error;

	MemoryContextReset(a->call_cxt);
	error = pp_apply_run_part(a, NULL, 0, false, result);
	start_split(a, batch, &split, false);
	while (split.depth > 0 && error == NULL)
		error = split_step(a, &split, result);
	return error;
}
