/*
 * threshold.c
 *		When too many entries fail, the pipeline stops, instead of dead-lettering the world.
 *
 * How many of the last entries were applied and how many failed alone is counted for the pipeline as a
 * whole, in shared memory.  Before each commit its entries are counted in: when more than MIN_FAILED
 * have failed, and their share is above the pipeline's option error_threshold, the transaction is rolled
 * back and nothing of it is dead-lettered.  What is rolled back for another reason is taken out again.
 * After a crash or a restart of the server the ledger has the numbers.
 *
 * A pipeline that is stopped tries again with back-off, as always, but looks at a few entries only
 * (pp_apply_samples_pass()).  When the whole batch passes, or enough of the samples do, the count
 * begins anew.
 */
#include "apply_internal.h"

#include "catalog/pg_type.h"
#include "common/pg_prng.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define MIN_FAILED        100
#define DEFAULT_THRESHOLD 0.5
#define LAST_ENTRIES      1000 /* of which are looked at; they are counted by the half of it */

/* With the pipeline's lock. */
static void
add(PpWindow *w, PpDecided decided)
{
	w->now.n += decided.n;
	w->now.failed += decided.failed;
	if (w->now.n >= LAST_ENTRIES / 2)
	{
		w->before = w->now;
		w->now = (PpDecided){0, 0};
	}
}

static void
take_out_of(PpDecided *from, PpDecided *decided)
{
	int n = Min(from->n, decided->n);
	int failed = Min(from->failed, decided->failed);

	from->n -= n;
	decided->n -= n;
	from->failed -= failed;
	decided->failed -= failed;
}

/* Of the last entries, LAST_ENTRIES if there are, these being the newest.  With the pipeline's lock. */
static PpDecided
last_entries(const PpWindow *w, PpDecided last)
{
	const PpDecided *older[] = {&w->now, &w->before};

	for (int i = 0; i < lengthof(older) && last.n < LAST_ENTRIES; i++)
	{
		last.n += older[i]->n;
		last.failed += older[i]->failed;
	}
	return last;
}

static bool
is_too_much(const PpApply *a, PpDecided d)
{
	return d.failed > MIN_FAILED && d.failed > a->error_threshold * d.n;
}

/* In a worker the pipeline has a count; in a backend nothing asks for one. */
void
pp_threshold_init(PpApply *a)
{
	a->error_threshold =
		pp_pipeline_option_float(a->pipeline, "error_threshold", DEFAULT_THRESHOLD);
	if (pp_my_proc != NULL)
		a->pipe = &pp_shared->pipes[pp_my_proc->pipe_no];
}

/* The last rows of pipeline $1, $2 at most: each kind has an index of its own (ledger.h). */
#define LAST(kind)                                                                               \
	"(SELECT applied, dead, last_id FROM %1$s.postpipe_ledger WHERE pipeline = $1 AND " kind " " \
	"ORDER BY last_id DESC LIMIT $2)"
#define LAST_ROWS "(" LAST("NOT summed") " UNION ALL " LAST("summed") ")"

/* What the ledger says of the last entries.  A letter that was applied since has not failed. */
static PpDecided
read_ledger(PpApply *a)
{
	Oid types[] = {TEXTOID, INT4OID};
	Datum values[] = {CStringGetTextDatum(a->pipeline->name), Int32GetDatum(LAST_ENTRIES)};
	PpDecided last = {0, 0};

	SPI_execute_with_args(psprintf("SELECT applied, greatest(dead, 0) FROM " LAST_ROWS " l "
								   "ORDER BY last_id DESC LIMIT $2",
								   a->ext->schema_name),
						  lengthof(types), types, values, NULL, true, 0);
	for (uint64 i = 0; i < SPI_processed && last.n < LAST_ENTRIES; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		int failed = (int) pp_store_get_number(row, desc, 2);

		last.n += (int) pp_store_get_number(row, desc, 1) + failed;
		last.failed += failed;
	}
	return last;
}

/* The first worker of the pipeline since the server started: counts what the ledger has.  With SPI. */
void
pp_threshold_load(PpApply *a)
{
	PpWindow *w = &a->pipe->window;
	PpDecided last;

	if (w->known)
		return;
	last = read_ledger(a);
	LWLockAcquire(&a->pipe->lock, LW_EXCLUSIVE);
	if (!w->known)
		w->before = last;
	w->known = true;
	LWLockRelease(&a->pipe->lock);
}

/* The count begins anew, and the pipeline goes on. */
void
pp_threshold_reset(PpApply *a)
{
	LWLockAcquire(&a->pipe->lock, LW_EXCLUSIVE);
	a->pipe->window = (PpWindow){.known = true};
	LWLockRelease(&a->pipe->lock);
	a->counted = (PpDecided){0, 0};
	a->stopped = false;
}

/* The transaction for which entries were counted in is committed, or not. */
void
pp_threshold_end(PpApply *a, bool committed)
{
	PpDecided counted = a->counted;

	a->counted = (PpDecided){0, 0};
	if (committed || counted.n == 0)
		return;
	LWLockAcquire(&a->pipe->lock, LW_EXCLUSIVE);
	take_out_of(&a->pipe->window.now, &counted);
	take_out_of(&a->pipe->window.before, &counted);
	LWLockRelease(&a->pipe->lock);
}

/* Keeps what is said for as long as the pipeline is stopped, and throws it. */
static void
stop(PpApply *a, PpDecided decided, const PpEntryError *last)
{
	a->over = true;
	a->last_sqlstate = last->sqlstate;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%d of the last %d entries failed, the last one with: %s", decided.failed,
					decided.n, last->message),
			 errdetail("SQLSTATE %s. More than %g of them is too much; the batch is not applied.",
					   unpack_sql_state(last->sqlstate), a->error_threshold),
			 errhint("When table or statement are mended, the pipeline goes on by itself. Its "
					 "option error_threshold says which share may fail; with 1, all are "
					 "dead-lettered.")));
}

/* Before a commit: counts its entries in, or throws when too many have failed. */
void
pp_threshold_check(PpApply *a, const PpBatch *batch)
{
	const PpEntryError *last = NULL;
	PpDecided mine = {0, 0};
	PpDecided all;
	bool too_much;

	for (int i = 0; i < batch->n; i++)
	{
		const PpEntry *entry = &batch->entries[i];

		if (entry->settled || entry->letter != NULL || entry->skipped != 0)
			continue;
		mine.n += entry->verdict == PP_VERDICT_APPLIED || entry->verdict == PP_VERDICT_DEAD;
		mine.failed += entry->verdict == PP_VERDICT_DEAD;
		last = entry->verdict == PP_VERDICT_DEAD ? entry->error : last;
	}
	if (mine.n == 0)
		return;
	LWLockAcquire(&a->pipe->lock, LW_EXCLUSIVE);
	all = last_entries(&a->pipe->window, mine);
	too_much = last != NULL && is_too_much(a, all);
	if (!too_much)
	{
		add(&a->pipe->window, mine);
		a->counted = mine;
	}
	LWLockRelease(&a->pipe->lock);
	if (too_much)
		stop(a, all, last);
}

/*
 * pp_threshold_foresee
 *		While a batch is split: throws when so many of its n entries have failed that it is too much
 *		even if all others pass.
 */
void
pp_threshold_foresee(PpApply *a, int failed, int n, const PpEntryError *last)
{
	if (is_too_much(a, (PpDecided){Max(n, LAST_ENTRIES), failed}))
		stop(a, (PpDecided){n, failed}, last);
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

/* What run_samples() is given and gives back. */
typedef struct Samples
{
	PpEntry **open;
	int n;
	PpApplyResult *result;
	int failed;
} Samples;

static void
run_samples(PpApply *a, void *arg)
{
	Samples *s = arg;

	pp_statement_prepare(a->statement);
	for (int i = 0; i < PP_SAMPLES && s->n > 0; i++)
	{
		PpEntry **entry = &s->open[pg_prng_uint64_range(&pg_global_prng_state, 0, s->n - 1)];

		s->failed += pp_apply_run_part(a, entry, 1, false, s->result) != NULL;
	}
}

/*
 * pp_apply_samples_pass
 *		While the pipeline is stopped because too many have failed: do most of a few entries pass?  No
 *		more than half as many may fail as of all: chance must not let it go on.  In a transaction
 *		of its own, which is rolled back.
 */
bool
pp_apply_samples_pass(PpApply *a, PpBatch *batch, PpApplyResult *result)
{
	Samples s = {.result = result};
	PpEntryError *error;

	s.n = pp_apply_collect_open(a, batch, &s.open);
	(void) pp_apply_transaction(a, run_samples, &s, false, &error);
	if (error != NULL)
		result->error = error;
	return error == NULL && s.failed < PP_SAMPLES &&
		   s.failed <= a->error_threshold * PP_SAMPLES / 2;
}
