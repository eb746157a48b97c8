/*
 * ledger.c
 *		Which entries are settled: one compact row per batch, written in the batch's transaction.
 *
 * A high-water mark would be wrong for a consumer group: one worker holds 100, another commits 200,
 * the first dies, and 100 would be skipped.  So the ledger knows single entries, by ID and by a
 * hash of the content.
 *
 * Encoding of postpipe_ledger.ids: a version byte (1), then for each entry in stream order the
 * milliseconds as a varint difference to the entry before, the sequence as a varint (a difference
 * when the milliseconds are the same), and 8 bytes of hash, most significant first.  A varint has
 * seven bits a byte, the low ones first, the high bit set on all but the last.
 */
#include "ledger.h"

#include "catalog/pg_type.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#define IDS_VERSION     1
#define MAX_ENTRY_BYTES (10 + 10 + 8)

static unsigned char *
put_varint(unsigned char *p, uint64 value)
{
	for (; value >= 0x80; value >>= 7)
		*p++ = (unsigned char) (value | 0x80);
	*p++ = (unsigned char) value;
	return p;
}

static const unsigned char *
get_varint(const unsigned char *p, const unsigned char *end, uint64 *value)
{
	*value = 0;
	for (int shift = 0; p < end && shift < 64; shift += 7)
	{
		*value |= (uint64) (*p & 0x7f) << shift;
		if ((*p++ & 0x80) == 0)
			return p;
	}
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("ledger row is damaged")));
	return NULL;
}

/* The IDs and hashes of entries in stream order. */
static bytea *
encode(PpEntry **entries, int n)
{
	bytea *result = palloc(VARHDRSZ + 1 + (Size) n * MAX_ENTRY_BYTES);
	unsigned char *p = (unsigned char *) VARDATA(result);
	PpId last = {0, 0};

	*p++ = IDS_VERSION;
	for (int i = 0; i < n; i++)
	{
		PpId id = entries[i]->id;
		uint64 hash = pg_hton64(entries[i]->hash);

		p = put_varint(p, id.ms - last.ms);
		p = put_varint(p, id.ms == last.ms ? id.seq - last.seq : id.seq);
		memcpy(p, &hash, sizeof(hash));
		p += sizeof(hash);
		last = id;
	}
	SET_VARSIZE(result, (char *) p - (char *) result);
	return result;
}

/* The entry with this ID, or NULL; entries are in stream order. */
static PpEntry *
find_entry(PpEntry **entries, int n, PpId id)
{
	int lo = 0;

	while (lo < n)
	{
		int mid = (lo + n) / 2;
		int order = pp_id_compare(entries[mid]->id, id);

		if (order == 0)
			return entries[mid];
		if (order < 0)
			lo = mid + 1;
		else
			n = mid;
	}
	return NULL;
}

/*
 * Does the record of an entry in this epoch still count?  Not when the pipeline was rewound to an
 * ID before it since: it is to be applied again.
 */
static bool
record_counts(const PpLedger *ledger, int epoch, PpId id)
{
	for (int i = 0; i < ledger->num_rewinds; i++)
		if (ledger->rewinds[i].epoch > epoch && pp_id_compare(id, ledger->rewinds[i].since) > 0)
			return false;
	return true;
}

/* Marks those of `entries` that a ledger row of this epoch has. */
static void
mark_duplicates(const PpLedger *ledger, int epoch, const bytea *ids, PpEntry **entries, int n)
{
	const unsigned char *p = (const unsigned char *) VARDATA_ANY(ids);
	const unsigned char *end = p + VARSIZE_ANY_EXHDR(ids);
	PpId id = {0, 0};

	if (p == end || *p++ != IDS_VERSION)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("ledger row is damaged")));
	while (p < end)
	{
		PpEntry *entry;
		uint64 ms;
		uint64 seq;
		uint64 hash;

		p = get_varint(p, end, &ms);
		p = get_varint(p, end, &seq);
		if (end - p < (ptrdiff_t) sizeof(hash))
			ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("ledger row is damaged")));
		memcpy(&hash, p, sizeof(hash));
		p += sizeof(hash);
		id.seq = ms == 0 ? id.seq + seq : seq;
		id.ms += ms;

		/* What is gone from the stream has no content to compare: the ID decides. */
		entry = find_entry(entries, n, id);
		if (entry != NULL && record_counts(ledger, epoch, id) &&
			(entry->verdict == PP_VERDICT_GONE || entry->hash == pg_ntoh64(hash)))
			entry->verdict = PP_VERDICT_DUPLICATE;
	}
}

/* Takes the current epoch, and those that were opened by a rewind, from the query's result. */
static void
read_epochs(PpLedger *ledger)
{
	bool isnull;

	if (ledger->rewinds != NULL)
		pfree(ledger->rewinds);
	ledger->rewinds = MemoryContextAlloc(ledger->cxt, (SPI_processed + 1) * sizeof(PpRewind));
	ledger->num_rewinds = 0;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;

		ledger->epoch = DatumGetInt32(SPI_getbinval(row, desc, 1, &isnull));
		ledger->base_known = DatumGetBool(SPI_getbinval(row, desc, 2, &isnull));
		if (DatumGetBool(SPI_getbinval(row, desc, 3, &isnull)))
		{
			PpRewind *rewind = &ledger->rewinds[ledger->num_rewinds++];

			rewind->epoch = ledger->epoch;
			rewind->since = *(PpId *) DatumGetPointer(SPI_getbinval(row, desc, 4, &isnull));
		}
	}
}

/*
 * pp_ledger_open
 *		Finds the pipeline's epoch, opens the first one where there is none, and returns the ID above
 *		which nothing is on record that counts (0-0: nothing is at all).  SPI must be connected.
 */
PpId
pp_ledger_open(PpLedger *ledger)
{
	Oid types[] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(ledger->pipeline)};
	const char *s = ledger->ext->schema_name;
	const PpRewind *last;
	bool isnull;
	PpId mark = {0, 0};

	SPI_execute_with_args(psprintf("INSERT INTO %s.postpipe_epoch (pipeline, epoch, cause) "
								   "VALUES ($1, 1, 'first') ON CONFLICT DO NOTHING",
								   s),
						  1, types, values, NULL, false, 0);
	SPI_execute_with_args(psprintf("SELECT epoch, base_known, again, since_id "
								   "FROM %s.postpipe_epoch WHERE pipeline = $1 ORDER BY epoch",
								   s),
						  1, types, values, NULL, false, 0);
	read_epochs(ledger);
	last = ledger->num_rewinds > 0 ? &ledger->rewinds[ledger->num_rewinds - 1] : NULL;
	values[1] = Int32GetDatum(last ? last->epoch : 0);
	SPI_execute_with_args(psprintf("SELECT last_id FROM %s.postpipe_ledger WHERE pipeline = $1 "
								   "AND epoch >= $2 ORDER BY last_id DESC LIMIT 1",
								   s),
						  2, types, values, NULL, false, 1);
	if (SPI_processed == 1)
		mark = *(PpId *) DatumGetPointer(
			SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (last != NULL && pp_id_compare(last->since, mark) > 0)
		mark = last->since;
	return mark;
}

/*
 * pp_ledger_set_base
 *		Notes how many entries had been added to the stream that the epoch does not account for
 *		(-1: not provable), once, before the first of them is read.  SPI must be connected.
 */
void
pp_ledger_set_base(PpLedger *ledger, int64 base)
{
	Oid types[] = {TEXTOID, INT4OID, INT8OID};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), Int32GetDatum(ledger->epoch),
					  Int64GetDatum(base)};
	const char *nulls = base < 0 ? "  n" : "   ";

	SPI_execute_with_args(psprintf("UPDATE %s.postpipe_epoch SET base_known = true, "
								   "base_added = $3 WHERE pipeline = $1 AND epoch = $2",
								   ledger->ext->schema_name),
						  3, types, values, nulls, false, 0);
	ledger->base_known = true;
}

/*
 * pp_ledger_lookup
 *		Gives the verdict "duplicate" to those of `entries`, in stream order, that are settled
 *		already.  SPI must be connected.
 */
void
pp_ledger_lookup(PpLedger *ledger, PpEntry **entries, int n)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, id_type, id_type};
	Datum values[3];
	char *sql = NULL;

	if (n == 0)
		return;
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = PointerGetDatum(&entries[0]->id);
	values[2] = PointerGetDatum(&entries[n - 1]->id);
	if (ledger->lookup_plan == NULL)
		sql =
			psprintf("SELECT ids, epoch FROM %s.postpipe_ledger WHERE pipeline = $1 "
					 "AND last_id OPERATOR(%s.>=) $2 AND first_id OPERATOR(%s.<=) $3",
					 ledger->ext->schema_name, ledger->ext->schema_name, ledger->ext->schema_name);
	pp_store_execute_plan(&ledger->lookup_plan, sql, 3, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		HeapTuple row = SPI_tuptable->vals[i];
		Datum ids = SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &isnull);
		Datum epoch = SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull);

		mark_duplicates(ledger, DatumGetInt32(epoch), DatumGetByteaPP(ids), entries, n);
	}
	SPI_freetuptable(SPI_tuptable);
}

static void
record_lost(PpLedger *ledger, const PpEntry *entry)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, INT4OID, id_type};
	Datum values[] = {CStringGetTextDatum(ledger->pipeline), Int32GetDatum(ledger->epoch),
					  PointerGetDatum(&entry->id)};
	char *sql = NULL;

	if (ledger->lost_plan == NULL)
		sql = psprintf("INSERT INTO %s.postpipe_lost_range "
					   "(pipeline, epoch, first_id, last_id, entries, cause) "
					   "VALUES ($1, $2, $3, $3, 1, 'deleted_while_pending')",
					   ledger->ext->schema_name);
	pp_store_execute_plan(&ledger->lost_plan, sql, 3, types, values, NULL);
}

/*
 * pp_ledger_record
 *		Records these entries, in stream order, by their verdicts.  In the transaction that settles
 *		them; SPI must be connected.  Duplicates are on record already and must not be passed.
 */
void
pp_ledger_record(PpLedger *ledger, PpEntry **entries, int n)
{
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, INT4OID, INT4OID, id_type, id_type,
				   INT4OID, INT4OID, INT4OID, INT4OID, BYTEAOID};
	Datum values[10];
	int counts[PP_VERDICT_DEAD + 1] = {0};
	char *sql = NULL;

	if (n == 0)
		return;
	for (int i = 0; i < n; i++)
	{
		counts[entries[i]->verdict]++;
		if (entries[i]->verdict == PP_VERDICT_GONE)
			record_lost(ledger, entries[i]);
	}
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = Int32GetDatum(ledger->epoch);
	values[2] = Int32GetDatum(ledger->worker);
	values[3] = PointerGetDatum(&entries[0]->id);
	values[4] = PointerGetDatum(&entries[n - 1]->id);
	values[5] = Int32GetDatum(counts[PP_VERDICT_APPLIED]);
	values[6] = Int32GetDatum(counts[PP_VERDICT_FILTERED]);
	values[7] = Int32GetDatum(counts[PP_VERDICT_DEAD]);
	values[8] = Int32GetDatum(counts[PP_VERDICT_GONE]);
	values[9] = PointerGetDatum(encode(entries, n));
	if (ledger->record_plan == NULL)
		sql = psprintf("INSERT INTO %s.postpipe_ledger (pipeline, epoch, worker, first_id, "
					   "last_id, applied, filtered, dead, lost, ids) "
					   "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
					   ledger->ext->schema_name);
	pp_store_execute_plan(&ledger->record_plan, sql, 10, types, values, NULL);
}

/*
 * pp_ledger_adjust
 *		Dead letters of an epoch, the first and the last of them with these IDs, were applied or
 *		filtered after all.  In the transaction that does it; SPI must be connected.  Their IDs are on
 *		record since they failed, so the row has none.
 */
void
pp_ledger_adjust(PpLedger *ledger, int epoch, PpId first, PpId last, int applied, int filtered)
{
	static const unsigned char no_ids = IDS_VERSION;
	Oid id_type = pp_id_type_oid(ledger->ext);
	Oid types[] = {TEXTOID, INT4OID, INT4OID, id_type, id_type,
				   INT4OID, INT4OID, INT4OID, BYTEAOID};
	Datum values[] = {
		CStringGetTextDatum(ledger->pipeline),
		Int32GetDatum(epoch),
		Int32GetDatum(ledger->worker),
		PointerGetDatum(&first),
		PointerGetDatum(&last),
		Int32GetDatum(applied),
		Int32GetDatum(filtered),
		Int32GetDatum(-applied - filtered),
		PointerGetDatum(cstring_to_text_with_len((const char *) &no_ids, 1)),
	};

	SPI_execute_with_args(psprintf("INSERT INTO %s.postpipe_ledger (pipeline, epoch, worker, "
								   "first_id, last_id, applied, filtered, dead, lost, ids) "
								   "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9)",
								   ledger->ext->schema_name),
						  lengthof(types), types, values, NULL, false, 0);
}

/*
 * pp_ledger_new_epoch
 *		Opens an epoch, from a backend.  With `again`, epochs before it no longer count: what they
 *		settled will be applied again.  Returns its number.
 */
int
pp_ledger_new_epoch(const PpExtension *ext, const char *pipeline, PpId since, const char *cause,
					bool again)
{
	Oid types[] = {TEXTOID, TEXTOID, BOOLOID, TEXTOID};
	char id[PP_ID_LEN];
	Datum values[4];

	pp_id_print(since, id);
	values[0] = CStringGetTextDatum(pipeline);
	values[1] = CStringGetTextDatum(cause);
	values[2] = BoolGetDatum(again);
	values[3] = CStringGetTextDatum(id);
	return (int) pp_store_execute(ext,
								  psprintf("INSERT INTO %s.postpipe_epoch "
										   "(pipeline, epoch, cause, again, since_id) "
										   "SELECT $1, coalesce(max(epoch), 1) + 1, $2, $3, "
										   "$4::%s.postpipe_id FROM %s.postpipe_epoch "
										   "WHERE pipeline = $1",
										   ext->schema_name, ext->schema_name, ext->schema_name),
								  4, types, values, NULL);
}

/* Deletes all that is kept of a pipeline, but for its definition. From a backend. */
void
pp_ledger_forget(const PpExtension *ext, const char *pipeline)
{
	static const char *const tables[] = {"postpipe_ledger", "postpipe_epoch", "postpipe_lost_range",
										 "postpipe_dead_letter", "postpipe_progress"};
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(pipeline)};

	for (int i = 0; i < lengthof(tables); i++)
		pp_store_execute(
			ext, psprintf("DELETE FROM %s.%s WHERE pipeline = $1", ext->schema_name, tables[i]), 1,
			types, values, NULL);
}
