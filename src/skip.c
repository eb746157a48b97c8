/*
 * skip.c
 *		Entries that are not to be run, because somebody skipped them: postpipe_skip().
 *
 * The function has written their letters; these are "undelivered" until a worker comes to the entry: for
 * the ledger and the audit it is still pending or unread.  The transaction that comes to it gives it the
 * verdict "dead", and makes its letter one like any other.
 *
 * No entry slips through: the function locks the pipeline against all batches, finds the entry not
 * settled, writes the letter and raises PpPipe.skips.  Each transaction that applies entries compares
 * that number once it has its own lock, and so knows of all letters that were committed before.
 */
#include "apply_internal.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "event.h"

struct PpSkip
{
	PpId id;
	int epoch; /* of the letter */
	uint64 hash;
	PpEntryError error;
};

/* Finds the letters that are undelivered, in stream order. */
static void
load(PpApply *a)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(a->pipeline->name)};
	const char *s = a->ext->schema_name;
	MemoryContext one;
	SPITupleTable *table;
	bool isnull;

	if (a->skip_cxt == NULL)
		a->skip_cxt = AllocSetContextCreate(a->cxt, "postpipe skip", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(a->skip_cxt);
	a->num_skips = 0;
	a->skips_known = false; /* until all are read: an error must not leave an empty list */
	SPI_execute_with_args(psprintf("SELECT epoch, id, message FROM %s.postpipe_dead_letter "
								   "WHERE pipeline = $1 AND undelivered "
								   "ORDER BY id USING OPERATOR(%s.<), epoch",
								   s, s),
						  1, types, values, NULL, false, 0);
	table = SPI_tuptable;
	a->skips = MemoryContextAllocZero(a->skip_cxt, (SPI_processed + 1) * sizeof(PpSkip));
	one = AllocSetContextCreate(CurrentMemoryContext, "postpipe letter", ALLOCSET_DEFAULT_SIZES);
	for (uint64 i = 0; i < table->numvals; i++)
	{
		PpSkip *skip = &a->skips[a->num_skips];
		PpLetterKey key = {0};
		PpEntry letter;

		key.epoch = (int) pp_store_get_number(table->vals[i], table->tupdesc, 1);
		key.id = pp_store_get_id(table->vals[i], table->tupdesc, 2);
		if (!pp_dead_letter_load(&a->ledger, one, &key, &letter))
			continue;
		skip->id = key.id;
		skip->epoch = key.epoch;
		skip->hash = pp_event_hash(&letter);
		skip->error.final = true;
		skip->error.sqlstate = letter.letter->sqlstate;
		skip->error.message = MemoryContextStrdup(
			a->skip_cxt,
			TextDatumGetCString(SPI_getbinval(table->vals[i], table->tupdesc, 3, &isnull)));
		a->num_skips++;
		MemoryContextReset(one);
	}
	MemoryContextDelete(one);
	SPI_freetuptable(table);
	a->skips_known = true;
}

/* What is said of this entry; of one that is gone from the stream the ID decides.  NULL: nothing. */
static const PpSkip *
find(const PpApply *a, const PpEntry *entry)
{
	int lo = 0;
	int n = a->num_skips;

	while (lo < n)
	{
		int mid = (lo + n) / 2;

		if (pp_id_compare(a->skips[mid].id, entry->id) < 0)
			lo = mid + 1;
		else
			n = mid;
	}
	for (; lo < a->num_skips && pp_id_compare(a->skips[lo].id, entry->id) == 0; lo++)
		if (entry->nfields < 0 || entry->hash == a->skips[lo].hash)
			return &a->skips[lo];
	return NULL;
}

/*
 * pp_skip_find
 *		Gives the verdict "dead", for good, to the entries that were skipped and are not on record as
 *		settled.  At the start of each transaction that applies entries of the stream, after the look-up;
 *		SPI must be connected.  Returns how many it found that it had not found before.
 */
int
pp_skip_find(PpApply *a, PpBatch *batch)
{
	int found = 0;

	/* Written under a lock of the pipeline that nobody has while we have ours. */
	if (!a->skips_known || a->skips_seen != a->pipe->skips)
	{
		a->skips_seen = a->pipe->skips;
		load(a);
	}
	for (int i = 0; i < batch->n && a->num_skips > 0; i++)
	{
		PpEntry *entry = &batch->entries[i];
		const PpSkip *skip;

		if (entry->settled || entry->skipped != 0 || entry->verdict == PP_VERDICT_DUPLICATE ||
			(skip = find(a, entry)) == NULL)
			continue;
		entry->verdict = PP_VERDICT_DEAD;
		entry->skipped = skip->epoch;
		entry->retrying = false;
		/* The list may be read anew while the batch is in hand. */
		entry->error = MemoryContextAlloc(batch->cxt, sizeof(PpEntryError));
		*entry->error = skip->error;
		entry->error->message = MemoryContextStrdup(batch->cxt, skip->error.message);
		found++;
	}
	return found;
}
