/*
 * retry.c
 *		Dead letters that are tried again.
 *
 * Worker 1 does it between two batches.  The letters that are due become the entries of a batch,
 * which goes the way of any batch (apply.c, split.c), but for three things: each transaction locks
 * the letters first, skipping those that somebody else has; at its end, what passed leaves the
 * table, with a row in the ledger for the sums, and what failed waits for its next attempt or is
 * dead; and a failure that is the moment's or the pipeline's counts nothing against the letters.
 *
 * All state is in the table, so it outlives the worker and both servers.
 */
#include "retry.h"
#include "apply_internal.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "dead_letter.h"
#include "event.h"
#include "inflight.h"
#include "suspect.h"

#define MAX_LETTERS 100  /* of one transaction */
#define MAX_EXPIRED 1000 /* of one transaction */
#define LOCKED_MS   1000 /* until letters that somebody else has are looked at again */

/* What load_due() is given. */
typedef struct Due
{
	PpBatch *batch;
	size_t max_bytes;
	PpRetryNext next; /* if none is due now */
} Due;

static int
compare_keys(const void *x, const void *y)
{
	const PpLetterKey *a = x;
	const PpLetterKey *b = y;

	return a->epoch != b->epoch ? a->epoch - b->epoch : pp_id_compare(a->id, b->id);
}

/*
 * pp_retry_make_batch
 *		The letters with these keys, as a batch in its context, normalized, in the order of epochs
 *		and streams.  No more than max_bytes of them, but at least one; returns how many keys that
 *		were.  SPI must be connected.
 */
int
pp_retry_make_batch(PpApply *a, PpLetterKey *keys, int n, size_t max_bytes, PpBatch *batch)
{
	MemoryContext old;
	int taken = 0;
	size_t bytes = 0;

	while (taken < n && (taken == 0 || bytes + keys[taken].bytes <= max_bytes))
		bytes += keys[taken++].bytes;
	qsort(keys, taken, sizeof(PpLetterKey), compare_keys);
	batch->n = 0;
	batch->bytes = 0;
	batch->entries = MemoryContextAllocZero(batch->cxt, Max(taken, 1) * sizeof(PpEntry));
	for (int i = 0; i < taken; i++)
	{
		PpEntry *entry = &batch->entries[batch->n];

		if (!pp_dead_letter_load(&a->ledger, batch->cxt, &keys[i], entry))
			continue;
		old = MemoryContextSwitchTo(batch->cxt);
		entry->hash = pp_event_hash(entry);
		pp_event_normalize(entry, a->pipeline->event_types);
		MemoryContextSwitchTo(old);
		batch->bytes += entry->bytes;
		batch->n++;
	}
	return taken;
}

/* Loads what is due and nobody else has, or finds out when something is. */
static void
load_due(PpApply *a, void *arg)
{
	Due *due = arg;
	Oid types[] = {TEXTOID, TIMESTAMPTZOID};
	TimestampTz now = GetCurrentTimestamp();
	Datum values[] = {CStringGetTextDatum(a->pipeline->name), TimestampTzGetDatum(now)};
	PpLetterKey *keys;
	int n;

	SPI_execute_with_args(psprintf("SELECT epoch, id, size_bytes FROM %s.postpipe_dead_letter "
								   "WHERE pipeline = $1 AND state = 'retrying' "
								   "AND next_retry_at <= $2 ORDER BY next_retry_at "
								   "FOR UPDATE SKIP LOCKED",
								   a->ext->schema_name),
						  2, types, values, NULL, false, MAX_LETTERS);
	keys = pp_dead_letter_keys(CurrentMemoryContext, &n);
	if (n > 0)
	{
		(void) pp_retry_make_batch(a, keys, n, due->max_bytes, due->batch);
		return;
	}
	SPI_execute_with_args(psprintf("SELECT min(next_retry_at) FROM %s.postpipe_dead_letter "
								   "WHERE pipeline = $1 AND state = 'retrying'",
								   a->ext->schema_name),
						  1, types, values, NULL, false, 1);
	due->next.due_at = pp_store_get_number(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	if (due->next.due_at != 0 && due->next.due_at <= now)
		due->next = (PpRetryNext){.look_at = pp_steady_in(LOCKED_MS)};
}

/* Applies the batch: one by one those letters that may have crashed the process (suspect.c). */
static PpOutcome
run_parts(PpApply *a, PpBatch *batch, PpApplyResult *total)
{
	PpOutcome outcome = PP_OUTCOME_DONE;

	for (int first = 0, end; first < batch->n && outcome == PP_OUTCOME_DONE; first = end)
	{
		PpBatch part = *batch;
		PpApplyResult result;

		end = pp_suspect_part_end(batch, first);
		part.entries += first;
		part.n = end - first;
		if (part.n == 1)
			(void) pp_suspect_condemn(part.cxt, part.entries);
		outcome = pp_apply_batch(a, &part, false, &result);
		total->applied += result.applied;
		total->conflicted += result.conflicted;
		total->filtered += result.filtered;
		total->dead += result.dead;
		total->error = result.error;
		if (outcome == PP_OUTCOME_DONE && pp_inflight_suspects_exist())
			XLogFlush(result.lsn); /* before the next suspect can crash */
	}
	return outcome;
}

/*
 * pp_retry_run
 *		Tries again what is due, a bounded number of letters of about max_bytes.  *next becomes when
 *		to call again; on anything but DONE it is the caller's business.
 *		*result is as of pp_apply_batch(); what its error points to is valid until the next call.
 */
PpOutcome
pp_retry_run(PpApply *a, size_t max_bytes, PpApplyResult *result, PpRetryNext *next)
{
	MemoryContext old;
	PpBatch batch = {0};
	Due due = {&batch, max_bytes, {0}};
	PpOutcome outcome;

	memset(result, 0, sizeof(*result));
	memset(next, 0, sizeof(*next));
	if (a->retry_cxt == NULL)
		a->retry_cxt = AllocSetContextCreate(a->cxt, "postpipe retry", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(a->retry_cxt);
	batch.cxt = a->retry_cxt;
	old = MemoryContextSwitchTo(a->retry_cxt);
	outcome = pp_apply_transaction(a, load_due, &due, true, &result->error);
	MemoryContextSwitchTo(old);
	pp_inflight_source(PP_INFLIGHT_RETRY);
	if (outcome != PP_OUTCOME_DONE || batch.n == 0)
	{
		if (outcome == PP_OUTCOME_DONE)
			pp_inflight_suspects_settled();
		pp_inflight_source(PP_INFLIGHT_STREAM);
		*next = due.next;
		return outcome;
	}
	a->retrying = true;
	outcome = run_parts(a, &batch, result);
	a->retrying = false;
	pp_inflight_source(PP_INFLIGHT_STREAM);
	next->look_at = pp_steady_now();  /* there may be more */
	MemoryContextReset(a->retry_cxt); /* one letter may have been large */
	return outcome;
}

/*
 * pp_retry_lock
 *		At the start of a transaction: locks the letters that are not settled yet.  Those that cannot
 *		be had are left out of the batch with `leave_out`, else they make it throw.
 */
void
pp_retry_lock(PpApply *a, PpBatch *batch, bool leave_out)
{
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];

		if (entry->settled || entry->verdict == PP_VERDICT_DUPLICATE ||
			pp_dead_letter_lock(&a->ledger, entry))
			continue;
		if (!leave_out)
			ereport(ERROR, (errcode(ERRCODE_LOCK_NOT_AVAILABLE),
							errmsg("somebody has changed the dead letters meanwhile")));
		entry->verdict = PP_VERDICT_DUPLICATE;
	}
}

/* A row in the ledger for what passed, for each epoch; letters are in the order of theirs. */
static void
adjust_sums(PpApply *a, PpEntry **passed, int n)
{
	for (int i = 0; i < n;)
	{
		int epoch = passed[i]->letter->epoch;
		PpId first = passed[i]->id;
		int applied = 0;
		int filtered = 0;

		for (; i < n && passed[i]->letter->epoch == epoch; i++)
		{
			applied += passed[i]->verdict == PP_VERDICT_APPLIED;
			filtered += passed[i]->verdict == PP_VERDICT_FILTERED;
		}
		pp_ledger_adjust(&a->ledger, epoch, first, passed[i - 1]->id, applied, filtered);
	}
}

/*
 * pp_retry_record
 *		At the end of a transaction: what was decided of the letters goes into the table and the
 *		ledger's sums.  by_hand: they were replayed, which changes nothing about further retries.
 *		SPI must be connected.
 */
void
pp_retry_record(PpApply *a, PpBatch *batch, bool by_hand)
{
	PpEntry **passed = palloc(Max(batch->n, 1) * sizeof(PpEntry *));
	int n = 0;

	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];

		if (entry->settled)
			continue;
		if (entry->verdict == PP_VERDICT_DEAD)
			pp_dead_letter_failed(&a->ledger, a->pipeline, entry, by_hand);
		if (entry->verdict != PP_VERDICT_APPLIED && entry->verdict != PP_VERDICT_FILTERED)
			continue;
		pp_dead_letter_remove(&a->ledger, entry);
		passed[n++] = entry;
	}
	adjust_sums(a, passed, n);
	pfree(passed);
}

/*
 * pp_retry_expire
 *		A PpWork: removes dead letters that are older than its `retention`; they count as discarded.
 */
void
pp_retry_expire(PpApply *a, void *arg)
{
	PpExpire *e = arg;
	Oid types[] = {TEXTOID, TEXTOID};
	Datum values[] = {CStringGetTextDatum(a->pipeline->name), CStringGetTextDatum(e->retention)};
	const char *s = a->ext->schema_name;

	e->more = pp_dead_letter_discard(
				  a->ext,
				  psprintf("SELECT epoch, id FROM %s.postpipe_dead_letter WHERE pipeline = $1 "
						   "AND state = 'dead' AND NOT undelivered "
						   "AND last_failed_at < now() - $2::interval "
						   "ORDER BY last_failed_at LIMIT %d FOR UPDATE SKIP LOCKED",
						   s, MAX_EXPIRED),
				  2, types, values, NULL) >= MAX_EXPIRED;
	SPI_execute_with_args(psprintf("SELECT least(min(last_failed_at), now()) + $2::interval "
								   "FROM %s.postpipe_dead_letter "
								   "WHERE pipeline = $1 AND state = 'dead' AND NOT undelivered",
								   s),
						  2, types, values, NULL, false, 0);
	e->next = pp_store_get_number(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}
