/*
 * apply.c
 *		A batch of entries through the pipeline's statement: isolate first, then judge.
 *
 * One transaction holds the statement's rows, the ledger's record of the entries, and the dead
 * letters.  A good batch takes one run of the statement and no subtransaction.
 *
 * When the run fails, the transaction is rolled back and the error is looked at (errors.c).  What
 * is the moment's goes back to the caller.  Else the batch is split in halves, each in a
 * subtransaction, until the entries that fail alone are found: at most 2 log2(n) + 2 runs for one
 * of them.  After MAX_SUBTRANSACTIONS successful parts what is decided so far is committed, and
 * the rest goes on in a new transaction.
 *
 * An entry is dead only if it fails while others pass.  When the statement fails on an empty batch
 * too, or with an error of the pipeline's kind on all that was tried, the pipeline is at fault and
 * nothing is dead-lettered.
 *
 * This module takes a batch and knows no Redis.
 */
#include "apply.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "durable.h"
#include "errors.h"
#include "event.h"
#include "statement.h"

#define MAX_SUBTRANSACTIONS 32 /* in a transaction; more than 64 XIDs overflow a proc's cache */
#define MAX_HOPELESS_RUNS 24   /* failures of the pipeline's kind with no success between */

struct PpApply
{
	MemoryContext cxt;
	MemoryContext call_cxt; /* for one call of pp_apply_batch() */
	const PpExtension *ext;
	PpPipeline *pipeline;
	PpLedger	ledger;
	PpStatement *statement;
};

/* A part of the batch that is still to be run while it is split. */
typedef struct Part
{
	int			first;
	int			end;
	bool		known_bad; /* the whole was, and the other half was not */
	bool		is_left;   /* its right half is the part below it on the stack */
} Part;

typedef struct Split
{
	PpEntry   **open; /* entries without a verdict, by wave and stream order */
	int			n;
	Part	   *stack;
	int			depth;
	int			successes;	  /* runs that passed */
	int			hopeless;	  /* failures of the pipeline's kind of single entries */
	int			other_errors; /* failures of single entries of other kinds */
} Split;

/* For a worker of a pipeline; everything lives in `cxt`. pp_apply_open() comes next. */
PpApply *
pp_apply_create(MemoryContext cxt, const PpExtension *ext, PpPipeline *pipeline, int worker)
{
	PpApply    *a = MemoryContextAllocZero(cxt, sizeof(PpApply));

	a->cxt = cxt;
	a->call_cxt = AllocSetContextCreate(cxt, "postpipe apply", ALLOCSET_DEFAULT_SIZES);
	a->ext = ext;
	a->pipeline = pipeline;
	a->ledger.ext = ext;
	a->ledger.pipeline = pipeline->name;
	a->ledger.worker = worker;
	return a;
}

Oid
pp_apply_role(const PpApply *a)
{
	return a->statement ? pp_statement_role(a->statement) : InvalidOid;
}

/* Starts a transaction; returns false, in it, when the extension has been dropped. */
static bool
begin(PpApply *a)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());

	/*
	 * DROP EXTENSION locks the extension first and its tables then, as we do: it waits for this
	 * transaction, and the next one waits for it here and then finds the extension gone.
	 */
	LockDatabaseObject(ExtensionRelationId, a->ext->oid, 0, AccessShareLock);
	if (get_extension_name(a->ext->oid) == NULL)
		return false;
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	return true;
}

static XLogRecPtr
commit(MemoryContext back_to)
{
	SPI_finish();
	PopActiveSnapshot();
	pp_durable_before_commit();
	CommitTransactionCommand();
	MemoryContextSwitchTo(back_to);
	return pp_durable_after_commit();
}

/* In PG_CATCH: takes the error and rolls the transaction back. */
static PpEntryError *
roll_back(MemoryContext cxt)
{
	PpEntryError *error;

	MemoryContextSwitchTo(cxt);
	error = pp_entry_error_capture(cxt);
	disable_timeout(STATEMENT_TIMEOUT, false);
	AbortOutOfAnyTransaction();
	MemoryContextSwitchTo(cxt);
	return error;
}

static PpOutcome
outcome_of(const PpEntryError *error)
{
	return pp_fault_of(error->sqlstate) == PP_FAULT_MOMENT ? PP_OUTCOME_MOMENT : PP_OUTCOME_PIPELINE;
}

/*
 * pp_apply_open
 *		Opens the ledger and prepares the statement.  *mark becomes the highest ID on record.  On
 *		anything but DONE, *error has the reason, in the current memory context; may be called
 *		again.
 */
PpOutcome
pp_apply_open(PpApply *a, PpId *mark, PpEntryError **error)
{
	MemoryContext cxt = CurrentMemoryContext;
	PpOutcome	volatile outcome = PP_OUTCOME_DONE;

	*error = NULL;
	PG_TRY();
	{
		if (begin(a))
		{
			*mark = pp_ledger_open(&a->ledger);
			if (a->statement == NULL)
				a->statement = pp_statement_create(a->cxt, a->ext, a->pipeline);
			if (a->pipeline->builtin || strcmp(a->pipeline->name, PP_POSTS_PIPELINE) == 0)
				pp_posts_create_table(a->ext, a->pipeline);
			CommandCounterIncrement();
			pp_statement_prepare(a->statement);
			(void) commit(cxt);
		}
		else
		{
			AbortOutOfAnyTransaction();
			MemoryContextSwitchTo(cxt);
			outcome = PP_OUTCOME_GONE;
		}
	}
	PG_CATCH();
	{
		*error = roll_back(cxt);
		outcome = outcome_of(*error);
	}
	PG_END_TRY();
	return outcome;
}

/* Has pp_apply_set_base() been called in this epoch? */
bool
pp_apply_base_known(const PpApply *a)
{
	return a->ledger.base_known;
}

/* Notes where the audit of this epoch begins; see pp_ledger_set_base(). Otherwise as pp_apply_open(). */
PpOutcome
pp_apply_set_base(PpApply *a, int64 base, PpEntryError **error)
{
	MemoryContext cxt = CurrentMemoryContext;
	PpOutcome	volatile outcome = PP_OUTCOME_DONE;

	*error = NULL;
	PG_TRY();
	{
		if (begin(a))
		{
			pp_ledger_set_base(&a->ledger, base);
			(void) commit(cxt);
		}
		else
		{
			AbortOutOfAnyTransaction();
			MemoryContextSwitchTo(cxt);
			outcome = PP_OUTCOME_GONE;
		}
	}
	PG_CATCH();
	{
		*error = roll_back(cxt);
		outcome = outcome_of(*error);
	}
	PG_END_TRY();
	return outcome;
}

static int
compare_waves(const void *x, const void *y)
{
	const PpEntry *a = *(PpEntry *const *) x;
	const PpEntry *b = *(PpEntry *const *) y;

	if (a->wave != b->wave)
		return a->wave - b->wave;
	return pp_id_compare(a->id, b->id);
}

/*
 * Numbers the entries of each key from 0.  A statement that upserts cannot touch a row twice, and
 * entries with one key have to take effect one after the other: so each wave is a run of its own.
 */
static int
number_waves(List *key_fields, PpEntry **entries, int n)
{
	int			size = 16;
	int			max = 0;
	struct
	{
		uint64		hash;
		int			count;
	}		   *table;

	if (key_fields == NIL || n < 2)
		return 0;
	while (size < 2 * n)
		size *= 2;
	table = palloc0(size * sizeof(*table));
	for (int i = 0; i < n; i++)
	{
		uint64		hash = pp_event_key_hash(entries[i], key_fields);
		int			slot = (int) (hash & (size - 1));

		while (table[slot].count > 0 && table[slot].hash != hash)
			slot = (slot + 1) & (size - 1);
		table[slot].hash = hash;
		entries[i]->wave = table[slot].count++;
		max = Max(max, entries[i]->wave);
	}
	pfree(table);
	if (max > 0)
		qsort(entries, n, sizeof(PpEntry *), compare_waves);
	return max;
}

/* Runs the statement over entries in wave order, wave by wave. */
static void
run_waves(PpApply *a, PpEntry **entries, int n, PpApplyResult *result)
{
	int			first = 0;

	while (first < n)
	{
		int			end = first + 1;

		while (end < n && entries[end]->wave == entries[first]->wave)
			end++;
		result->runs++;
		result->conflicted += pp_statement_run(a->statement, entries + first, end - first);
		first = end;
	}
	for (int i = 0; i < n; i++)
		entries[i]->verdict = PP_VERDICT_APPLIED;
}

/* Writes ledger and dead letters for the entries that have a verdict and are not settled yet. */
static void
record(PpApply *a, PpBatch *batch)
{
	PpEntry   **decided = palloc(Max(batch->n, 1) * sizeof(PpEntry *));
	int			n = 0;

	for (int i = 0; i < batch->n; i++)
	{
		PpEntry    *entry = &batch->entries[i];

		if (entry->settled || entry->verdict == PP_VERDICT_OPEN ||
			entry->verdict == PP_VERDICT_DUPLICATE)
			continue;
		decided[n++] = entry;
		if (entry->verdict == PP_VERDICT_DEAD)
			pp_dead_letter_store(&a->ledger, entry, a->pipeline->stream);
	}
	pp_ledger_record(&a->ledger, decided, n);
	pfree(decided);
}

/* The transaction is committed: what has a verdict is settled, and counted. */
static void
settle(PpBatch *batch, PpApplyResult *result)
{
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry    *entry = &batch->entries[i];

		if (entry->settled || entry->verdict == PP_VERDICT_OPEN)
			continue;
		entry->settled = true;
		result->applied += entry->verdict == PP_VERDICT_APPLIED;
		result->filtered += entry->verdict == PP_VERDICT_FILTERED;
		result->duplicates += entry->verdict == PP_VERDICT_DUPLICATE;
		result->dead += entry->verdict == PP_VERDICT_DEAD;
		result->lost += entry->verdict == PP_VERDICT_GONE;
	}
}

/* The transaction was rolled back: what only a run decided is open again. */
static void
reopen(PpBatch *batch)
{
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry    *entry = &batch->entries[i];

		if (entry->settled || entry->event == NULL)
			continue;
		if (entry->verdict == PP_VERDICT_APPLIED || entry->verdict == PP_VERDICT_DEAD)
		{
			entry->verdict = PP_VERDICT_OPEN;
			entry->error = NULL;
		}
	}
}

/* The open entries, in an array that lives as long as the call. */
static int
collect_open(PpApply *a, PpBatch *batch, PpEntry ***open)
{
	int			n = 0;

	*open = MemoryContextAlloc(a->call_cxt, Max(batch->n, 1) * sizeof(PpEntry *));
	for (int i = 0; i < batch->n; i++)
		if (batch->entries[i].verdict == PP_VERDICT_OPEN)
			(*open)[n++] = &batch->entries[i];
	return n;
}

static void
look_up_all(PpApply *a, PpBatch *batch)
{
	PpEntry   **entries = palloc(Max(batch->n, 1) * sizeof(PpEntry *));
	int			n = 0;

	for (int i = 0; i < batch->n; i++)
		if (!batch->entries[i].settled)
			entries[n++] = &batch->entries[i];
	pp_ledger_lookup(&a->ledger, entries, n);
	pfree(entries);
}

/* The good path: everything in one transaction and, but for repeated keys, in one run. */
static PpOutcome
try_whole(PpApply *a, PpBatch *batch, bool look_up, PpApplyResult *result)
{
	PpOutcome	volatile outcome = PP_OUTCOME_DONE;
	int			conflicted = result->conflicted;

	PG_TRY();
	{
		PpEntry   **open;
		int			n;

		if (begin(a))
		{
			if (look_up)
				look_up_all(a, batch);
			n = collect_open(a, batch, &open);
			if (n > 0)
			{
				pp_statement_prepare(a->statement);
				number_waves(pp_statement_key_fields(a->statement), open, n);
				run_waves(a, open, n, result);
			}
			record(a, batch);
			result->lsn = commit(a->call_cxt);
			settle(batch, result);
		}
		else
		{
			AbortOutOfAnyTransaction();
			MemoryContextSwitchTo(a->call_cxt);
			outcome = PP_OUTCOME_GONE;
		}
	}
	PG_CATCH();
	{
		result->error = roll_back(a->call_cxt);
		result->conflicted = conflicted;
		reopen(batch);
		outcome = outcome_of(result->error);
	}
	PG_END_TRY();
	return outcome;
}

/* Does the statement fail even with nothing to do?  Then no entry is to blame. */
static bool
fails_on_nothing(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	bool		volatile fails = false;

	PG_TRY();
	{
		if (begin(a))
		{
			pp_statement_prepare(a->statement);
			result->runs++;
			(void) pp_statement_run(a->statement, NULL, 0);
		}
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(a->call_cxt);
	}
	PG_CATCH();
	{
		result->error = roll_back(a->call_cxt);
		fails = true;
	}
	PG_END_TRY();
	return fails;
}

/* Runs one part in a subtransaction. Returns NULL, or the error it failed with. */
static PpEntryError *
run_part(PpApply *a, PpBatch *batch, PpEntry **entries, int n, PpApplyResult *result)
{
	MemoryContext old = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			conflicted = result->conflicted;
	PpEntryError *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(old);
	PG_TRY();
	{
		run_waves(a, entries, n, result);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(a->call_cxt);
		error = pp_entry_error_capture(a->call_cxt);
		disable_timeout(STATEMENT_TIMEOUT, false);
		RollbackAndReleaseCurrentSubTransaction();
		result->conflicted = conflicted;
		for (int i = 0; i < n; i++)
			entries[i]->verdict = PP_VERDICT_OPEN;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(old);
	CurrentResourceOwner = owner;
	return error;
}

static void
push_halves(Split *split, int first, int end)
{
	int			mid = (first + end) / 2;

	split->stack[split->depth++] = (Part) {mid, end, false, false};
	split->stack[split->depth++] = (Part) {first, mid, false, true};
}

/*
 * Takes the next part from the stack and runs it, or splits it when it is known to fail.
 * Returns the error of the moment that makes it pointless to go on, or NULL.
 */
static PpEntryError *
split_step(PpApply *a, PpBatch *batch, Split *split, PpApplyResult *result)
{
	Part		part = split->stack[--split->depth];
	PpEntry   **entries = split->open + part.first;
	int			n = part.end - part.first;
	PpEntryError *error;

	if (n == 0)
		return NULL;
	if (part.known_bad && n > 1)
	{
		push_halves(split, part.first, part.end);
		return NULL;
	}
	error = run_part(a, batch, entries, n, result);
	if (error == NULL)
	{
		split->successes++;
		/* The whole failed and its left half did not: then the right half need not be run whole. */
		if (part.is_left)
			split->stack[split->depth - 1].known_bad = true;
		return NULL;
	}
	result->error = error;
	if (pp_fault_of(error->sqlstate) == PP_FAULT_MOMENT)
		return error;
	if (n > 1)
	{
		push_halves(split, part.first, part.end);
		return NULL;
	}
	if (pp_fault_of(error->sqlstate) == PP_FAULT_PIPELINE)
		split->hopeless++;
	else
		split->other_errors++;
	entries[0]->verdict = PP_VERDICT_DEAD;
	entries[0]->error = error;
	return NULL;
}

/* Has everything that was tried failed with an error of the pipeline's kind? */
static bool
is_hopeless(const Split *split, int limit)
{
	return split->successes == 0 && split->other_errors == 0 && split->hopeless >= limit;
}

/* One transaction of the split. Sets *done when nothing is left. */
static PpOutcome
split_transaction(PpApply *a, PpBatch *batch, Split *split, PpApplyResult *result)
{
	PpOutcome	volatile outcome = PP_OUTCOME_DONE;

	PG_TRY();
	{
		PpEntryError *error = NULL;
		int			start = split->successes;

		if (!begin(a))
			outcome = PP_OUTCOME_GONE;
		else
		{
			pp_statement_prepare(a->statement);
			while (split->depth > 0 && error == NULL &&
				   split->successes - start < MAX_SUBTRANSACTIONS)
			{
				error = split_step(a, batch, split, result);
				if (is_hopeless(split, MAX_HOPELESS_RUNS))
					break;
			}
			if (error != NULL)
				outcome = PP_OUTCOME_MOMENT;
			else if (is_hopeless(split, Min(split->n, MAX_HOPELESS_RUNS)) && split->n > 1)
				outcome = PP_OUTCOME_PIPELINE;
		}
		if (outcome == PP_OUTCOME_DONE)
		{
			record(a, batch);
			result->lsn = commit(a->call_cxt);
			settle(batch, result);
		}
		else
		{
			AbortOutOfAnyTransaction();
			MemoryContextSwitchTo(a->call_cxt);
			reopen(batch);
		}
	}
	PG_CATCH();
	{
		result->error = roll_back(a->call_cxt);
		reopen(batch);
		outcome = outcome_of(result->error);
	}
	PG_END_TRY();
	return outcome;
}

/* The batch is known to fail: finds the entries that do, and applies the others. */
static PpOutcome
split_batch(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	Split		split = {0};
	PpOutcome	outcome = PP_OUTCOME_DONE;

	split.n = collect_open(a, batch, &split.open);
	qsort(split.open, split.n, sizeof(PpEntry *), compare_waves);
	split.stack = MemoryContextAlloc(a->call_cxt, 2 * (split.n + 1) * sizeof(Part));
	split.stack[split.depth++] = (Part) {0, split.n, true, false};
	while (split.depth > 0 && outcome == PP_OUTCOME_DONE)
		outcome = split_transaction(a, batch, &split, result);
	return outcome;
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
	PpOutcome	outcome;

	MemoryContextReset(a->call_cxt);
	memset(result, 0, sizeof(*result));
	outcome = try_whole(a, batch, look_up, result);
	if (outcome == PP_OUTCOME_PIPELINE &&
		(pp_fault_of(result->error->sqlstate) == PP_FAULT_ENTRY ||
		 !fails_on_nothing(a, batch, result)))
		outcome = split_batch(a, batch, result);
	MemoryContextSwitchTo(old);
	return outcome;
}
