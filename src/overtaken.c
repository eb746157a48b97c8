/*
 * overtaken.c
 *		Letters whose key was written since they failed.
 *
 * A generated statement without newer_by lets the later entry win.  An entry that is tried again
 * comes late: when an entry with the same key that is later in the stream, or of a later epoch, was
 * applied meanwhile,
 * its letter is marked in the transaction that applied that one, and what it says then only fills
 * what is NULL (PP_FORM_OLDER).
 *
 * Which keys have a letter is known from a set of bits by their hashes, so that a batch costs
 * nothing while there are no letters, and a query only when a key of it may have one.  The bits
 * are of this process: with several workers, a letter of one is not seen by the others, as order is
 * not kept among them anyway.
 *
 * The table may get another key, and the letters that are there have hashes of the one before.  So a hash
 * says of which key it is, and those of another one are made anew before letters are marked.
 */
#include "apply_internal.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "dead_letter.h"
#include "key.h"

#define FILTER_BITS  (1024 * 1024)
#define FILTER_WORDS (FILTER_BITS / 64)
#define MAX_LOADED   200000 /* letters; with more, every batch asks */
#define HASHED       1000   /* letters that are hashed again together, at most … */
#define HASHED_BYTES ((size_t) 16 * 1024 * 1024)
/* In a hash, the bits above are the mark of its key, and those below are 0 if no other entry has it. */
#define MARK_SHIFT 48
#define HASH_MASK  ((UINT64CONST(1) << MARK_SHIFT) - 1)

static void
watch(PpApply *a, uint64 hash)
{
	int bit = (int) (hash % FILTER_BITS);

	if (a->watched == NULL)
		a->watched = MemoryContextAllocZero(a->cxt, FILTER_WORDS * sizeof(uint64));
	a->watched[bit / 64] |= UINT64CONST(1) << (bit % 64);
}

static bool
is_watched(const PpApply *a, uint64 hash)
{
	int bit = (int) (hash % FILTER_BITS);

	return (a->watched[bit / 64] >> (bit % 64)) & 1;
}

/* Whatever key is written is asked for. */
void
pp_overtaken_watch_all(PpApply *a)
{
	watch(a, 0);
	memset(a->watched, 0xff, FILTER_WORDS * sizeof(uint64));
}

/* False: no other entry has its key. */
static bool
hash_entry(List *key, const PpEntry *entry, uint64 *hash)
{
	bool has_key = entry->event != NULL && pp_key_hash(key, entry, hash);

	*hash = has_key ? Max(*hash & HASH_MASK, 1) : 0;
	*hash |= (uint64) pp_key_mark(key) << MARK_SHIFT;
	return has_key;
}

/*
 * pp_overtaken_key
 *		The hash of the key of an entry that fails, from now on watched; false when its order does
 *		not matter, or it has no event or a key that no other has.
 */
bool
pp_overtaken_key(PpApply *a, const PpEntry *entry, uint64 *hash)
{
	if (a->statement == NULL || !pp_statement_has(a->statement, PP_FORM_OLDER))
		return false;
	if (!hash_entry(pp_statement_key(a->statement), entry, hash))
		return false;
	watch(a, *hash);
	return true;
}

/* The letters whose keys count, and may be other ones than those that they have. */
static PpLetterKey *
other_letters(PpApply *a, int *n)
{
	Oid types[] = {TEXTOID, INT8OID};
	Datum values[] = {CStringGetTextDatum(a->pipeline->name),
					  Int64GetDatum(pp_key_mark(pp_statement_key(a->statement)))};

	SPI_execute_with_args(
		psprintf("SELECT epoch, id, size_bytes FROM %1$s.postpipe_dead_letter "
				 "WHERE pipeline = $1 AND NOT overtaken AND NOT undelivered AND event IS NOT NULL "
				 "AND (key_hash IS NULL OR (key_hash >> %2$d) & 65535 <> $2) "
				 "ORDER BY epoch, id USING OPERATOR(%1$s.<)",
				 a->ext->schema_name, MARK_SHIFT),
		2, types, values, NULL, false, 0);
	return pp_dead_letter_keys(CurrentMemoryContext, n);
}

static void
write_hash(PpApply *a, const PpEntry *entry)
{
	Oid types[] = {TEXTOID, INT4OID, pp_id_type_oid(a->ext), INT8OID};
	uint64 hash;
	Datum values[4];

	/* Also where no other entry has its key: it need not be looked at again. */
	if (hash_entry(pp_statement_key(a->statement), entry, &hash))
		watch(a, hash);
	values[0] = CStringGetTextDatum(a->pipeline->name);
	values[1] = Int32GetDatum(entry->letter->epoch);
	values[2] = PointerGetDatum(&entry->id);
	values[3] = Int64GetDatum((int64) hash);
	SPI_execute_with_args(psprintf("UPDATE %1$s.postpipe_dead_letter SET key_hash = $4 "
								   "WHERE pipeline = $1 AND epoch = $2 AND id OPERATOR(%1$s.=) $3 "
								   "AND key_hash IS DISTINCT FROM $4",
								   a->ext->schema_name),
						  lengthof(types), types, values, NULL, false, 0);
}

/*
 * pp_overtaken_hash_again
 *		What the statement, which is prepared, takes for the key may be something else in the letters that
 *		are there than when they failed.  SPI must be connected.
 */
void
pp_overtaken_hash_again(PpApply *a)
{
	PpBatch batch = {0};
	PpLetterKey *keys;
	MemoryContext cxt;
	int n;

	if (!pp_statement_has(a->statement, PP_FORM_OLDER))
		return;
	keys = other_letters(a, &n);
	a->hashed_again |= n > 0;
	cxt = AllocSetContextCreate(CurrentMemoryContext, "postpipe letters", ALLOCSET_DEFAULT_SIZES);
	batch.cxt = AllocSetContextCreate(cxt, "postpipe letters batch", ALLOCSET_DEFAULT_SIZES);
	for (int done = 0; done < n;)
	{
		MemoryContext old = MemoryContextSwitchTo(cxt);

		CHECK_FOR_INTERRUPTS();
		MemoryContextReset(batch.cxt);
		done += pp_retry_make_batch(a, keys + done, Min(n - done, HASHED), HASHED_BYTES, &batch);
		for (int i = 0; i < batch.n; i++)
			write_hash(a, &batch.entries[i]);
		MemoryContextSwitchTo(old);
	}
	MemoryContextDelete(cxt);
}

/* Finds the letters that are there, of a statement that is prepared. SPI must be connected. */
void
pp_overtaken_load(PpApply *a)
{
	Oid types[] = {TEXTOID, INT8OID};
	Datum values[] = {CStringGetTextDatum(a->pipeline->name), Int64GetDatum((int64) HASH_MASK)};

	a->watched_key = pp_key_mark(pp_statement_key(a->statement)) + 1;
	if (!pp_statement_has(a->statement, PP_FORM_OLDER))
		return;
	pp_overtaken_hash_again(a);
	SPI_execute_with_args(psprintf("SELECT key_hash FROM %s.postpipe_dead_letter "
								   "WHERE pipeline = $1 AND key_hash & $2 <> 0 AND NOT overtaken",
								   a->ext->schema_name),
						  lengthof(types), types, values, NULL, false, MAX_LOADED);
	if (SPI_processed == MAX_LOADED)
		pp_overtaken_watch_all(a);
	else
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			bool isnull;

			watch(a, (uint64) DatumGetInt64(
						 SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)));
		}
	SPI_freetuptable(SPI_tuptable);
}

/* Marks the letters that are overtaken by these n entries. */
static void
mark(PpApply *a, Datum *hashes, Datum *epochs, Datum *ids, int n)
{
	PpLedger *ledger = &a->ledger;
	SPIPlanPtr *plan = &ledger->plans[PP_LEDGER_PLAN_MARK_OVERTAKEN];
	Oid id_type = pp_id_type_oid(a->ext);
	Oid types[] = {TEXTOID, INT8ARRAYOID, INT4ARRAYOID, get_array_type(id_type)};
	Datum values[4];
	const char *s = a->ext->schema_name;
	char *sql = NULL;

	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = PointerGetDatum(
		construct_array(hashes, n, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[2] =
		PointerGetDatum(construct_array(epochs, n, INT4OID, sizeof(int32), true, TYPALIGN_INT));
	values[3] =
		PointerGetDatum(construct_array(ids, n, id_type, sizeof(PpId), false, TYPALIGN_DOUBLE));
	if (*plan == NULL)
		sql = psprintf("UPDATE %s.postpipe_dead_letter d SET overtaken = true "
					   "FROM unnest($2, $3, $4) AS w (key_hash, epoch, id) "
					   "WHERE d.pipeline = $1 AND d.key_hash = w.key_hash AND NOT d.overtaken "
					   "AND (d.epoch < w.epoch OR d.epoch = w.epoch AND d.id OPERATOR(%s.<) w.id)",
					   s, s);
	pp_store_execute_plan(plan, sql, 4, types, values, NULL);
}

/*
 * pp_overtaken_mark
 *		Of a batch that is about to be committed: marks the letters whose keys it wrote.  After the
 *		batch's own letters are stored.  SPI must be connected.
 */
void
pp_overtaken_mark(PpApply *a, const PpBatch *batch)
{
	Datum *hashes;
	Datum *epochs;
	Datum *ids;
	List *key;
	int n = 0;

	if (a->statement == NULL || !pp_statement_has(a->statement, PP_FORM_OLDER))
		return;
	key = pp_statement_key(a->statement);
	if (a->watched_key != pp_key_mark(key) + 1)
		pp_overtaken_load(a);
	if (a->watched == NULL)
		return;
	hashes = palloc(Max(batch->n, 1) * sizeof(Datum));
	epochs = palloc(Max(batch->n, 1) * sizeof(Datum));
	ids = palloc(Max(batch->n, 1) * sizeof(Datum));
	for (int i = 0; i < batch->n; i++)
	{
		PpEntry *entry = &batch->entries[i];
		uint64 hash;

		if (entry->settled || entry->verdict != PP_VERDICT_APPLIED)
			continue;
		if (!hash_entry(key, entry, &hash) || !is_watched(a, hash))
			continue;
		hashes[n] = Int64GetDatum((int64) hash);
		epochs[n] = Int32GetDatum(entry->letter ? entry->letter->epoch : a->ledger.epoch);
		ids[n++] = PointerGetDatum(&entry->id);
	}
	if (n > 0)
		mark(a, hashes, epochs, ids, n);
	pfree(hashes);
	pfree(epochs);
	pfree(ids);
}
