/*
 * dead_letter.c
 *		Entries that could not be applied, with their bytes and the reason: the rows.
 *
 * A letter is written in the transaction of the batch, into PostgreSQL and never only into Redis:
 * under maxmemory Redis refuses XADD just when it is needed.  The fields are kept as Redis sent
 * them, so an entry that is no JSON, no UTF-8, or holds a NUL is kept as well.
 *
 * While attempts are left a letter is "retrying": worker 1 tries it again (retry.c).  Else, or when
 * no attempt could ever succeed because its entry has no event, or has crashed the process, it is
 * "dead".
 */
#include "dead_letter.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "event_object.h"
#include "guc.h"

#define MAX_DELAY_MS  (3600 * 1000)
#define ERROR_COLUMNS 9

static Datum
text_or_null(const char *value, char *null)
{
	*null = value ? ' ' : 'n';
	return value ? CStringGetTextDatum(value) : (Datum) 0;
}

/* sqlstate, message, detail, hint, context, schema_name, table_name, column_name, constraint_name */
static void
put_error(const PpEntryError *error, Datum *values, char *nulls)
{
	values[0] = CStringGetTextDatum(unpack_sql_state(error->sqlstate));
	values[1] = CStringGetTextDatum(error->message);
	values[2] = text_or_null(error->detail, &nulls[2]);
	values[3] = text_or_null(error->hint, &nulls[3]);
	values[4] = text_or_null(error->context, &nulls[4]);
	values[5] = text_or_null(error->schema_name, &nulls[5]);
	values[6] = text_or_null(error->table_name, &nulls[6]);
	values[7] = text_or_null(error->column_name, &nulls[7]);
	values[8] = text_or_null(error->constraint_name, &nulls[8]);
}

/* name, value, name, value … as bytea[] */
static Datum
fields_array(const PpEntry *entry)
{
	int n = Max(entry->nfields, 0);
	Datum *elems = palloc(Max(n, 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		elems[i] = PointerGetDatum(
			cstring_to_text_with_len(entry->fields[i].data, (int) entry->fields[i].len));
	return PointerGetDatum(construct_array(elems, n, BYTEAOID, -1, false, TYPALIGN_INT));
}

/* When an entry that failed for the attempts-th time is tried again; 0: never, it is dead. */
static TimestampTz
next_retry_at(const PpPipeline *p, const PpEntry *entry, int attempts)
{
	int64 delay;

	if (entry->error->final ||
		attempts > pp_pipeline_option_int(p, "max_retries", pp_guc_max_retries))
		return 0;
	delay = pp_pipeline_option_ms(p, "retry_delay", pp_guc_retry_delay);
	delay = Min(delay << Min(attempts - 1, 20), MAX_DELAY_MS);
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), delay);
}

/*
 * pp_dead_letter_store
 *		Writes the letter of an entry whose verdict is "dead", and sets entry->retrying: then
 *		*retry_at is lowered to when that is due (0 counts as never).  key_hash is that of its key,
 *		or NULL when the order does not matter.  A letter that is there under this ID is of another
 *		entry: it counts as discarded.  SPI must be connected.
 */
void
pp_dead_letter_store(PpLedger *ledger, const PpPipeline *p, PpEntry *entry, const uint64 *key_hash,
					 TimestampTz *retry_at)
{
	Oid types[] = {TEXTOID,  INT4OID,        pp_id_type_oid(ledger->ext),
				   TEXTOID,  TEXTOID,        TEXTOID,
				   TEXTOID,  TEXTOID,        TEXTOID,
				   TEXTOID,  TEXTOID,        TEXTOID,
				   TEXTOID,  TIMESTAMPTZOID, INT4OID,
				   JSONBOID, BYTEAARRAYOID,  INT8OID,
				   TEXTOID,  TIMESTAMPTZOID, INT8OID,
				   BOOLOID};
	SPIPlanPtr *plan = &ledger->plans[PP_LEDGER_PLAN_STORE_LETTER];
	Datum values[lengthof(types)];
	char nulls[lengthof(types) + 1];
	TimestampTz next = next_retry_at(p, entry, 1);
	char *sql = NULL;

	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	entry->retrying = next != 0;
	if (next != 0 && (*retry_at == 0 || next < *retry_at))
		*retry_at = next;
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = Int32GetDatum(ledger->epoch);
	values[2] = PointerGetDatum(&entry->id);
	values[3] = CStringGetTextDatum(p->stream);
	put_error(entry->error, &values[4], &nulls[4]);
	values[13] = TimestampTzGetDatum(pp_id_time(entry->id));
	values[14] = Int32GetDatum(ledger->worker);
	nulls[15] = entry->event ? ' ' : 'n';
	values[15] = entry->event ? JsonbPGetDatum(pp_object_jsonb(entry->event)) : (Datum) 0;
	values[16] = fields_array(entry);
	values[17] = Int64GetDatum((int64) entry->bytes);
	values[18] = CStringGetTextDatum(next ? "retrying" : "dead");
	nulls[19] = next ? ' ' : 'n';
	values[19] = TimestampTzGetDatum(next);
	nulls[20] = key_hash ? ' ' : 'n';
	values[20] = Int64GetDatum(key_hash ? (int64) *key_hash : 0);
	values[21] = BoolGetDatum(entry->skipped != 0);
	if (*plan == NULL)
		sql =
			psprintf("INSERT INTO %s.postpipe_dead_letter (pipeline, epoch, id, stream, "
					 "sqlstate, message, detail, hint, context, schema_name, table_name, "
					 "column_name, constraint_name, attempts, first_failed_at, last_failed_at, "
					 "added_at, worker, event, fields, size_bytes, state, next_retry_at, key_hash, "
					 "undelivered) "
					 "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 1, "
					 "now(), now(), $14, $15, $16, $17, $18, $19, $20, $21, $22) "
					 "ON CONFLICT (pipeline, epoch, id) DO NOTHING",
					 ledger->ext->schema_name);
	if (pp_store_execute_plan(plan, sql, lengthof(types), types, values, nulls) > 0)
		return;
	(void) pp_dead_letter_discard(ledger->ext, "SELECT $2 AS epoch, $3 AS id", 3, types, values,
								  NULL);
	pp_store_execute_plan(plan, NULL, lengthof(types), types, values, nulls);
}

/* Of a query's result (epoch, id, size_bytes): the letters, in `cxt`. */
PpLetterKey *
pp_dead_letter_keys(MemoryContext cxt, int *n)
{
	PpLetterKey *keys = MemoryContextAllocHuge(cxt, Max(SPI_processed, 1) * sizeof(PpLetterKey));

	*n = (int) SPI_processed;
	for (int i = 0; i < *n; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;

		keys[i].epoch = (int) pp_store_get_number(row, desc, 1);
		keys[i].id = pp_store_get_id(row, desc, 2);
		keys[i].bytes = pp_store_get_number(row, desc, 3);
	}
	SPI_freetuptable(SPI_tuptable);
	return keys;
}

/* A string as those of a reply are: a text where it is (PpEntry.in_texts), with a zero behind it. */
static PpString
copy_text(const char *data, size_t len)
{
	char *copy = (char *) palloc(VARHDRSZ + len + 1) + VARHDRSZ;

	SET_VARSIZE(copy - VARHDRSZ, VARHDRSZ + len);
	memcpy(copy, data, len);
	copy[len] = '\0';
	return (PpString){copy, len};
}

/* The strings of a bytea[], in `cxt`. */
static void
read_fields(Datum array, MemoryContext cxt, PpEntry *entry)
{
	MemoryContext old = MemoryContextSwitchTo(cxt);
	Datum *elems;
	bool *nulls;

	deconstruct_array(DatumGetArrayTypeP(array), BYTEAOID, -1, false, TYPALIGN_INT, &elems, &nulls,
					  &entry->nfields);
	entry->fields = palloc(Max(entry->nfields, 1) * sizeof(PpString));
	for (int i = 0; i < entry->nfields; i++)
	{
		bytea *field = nulls[i] ? NULL : DatumGetByteaPP(elems[i]);

		entry->fields[i] =
			field ? copy_text(VARDATA_ANY(field), VARSIZE_ANY_EXHDR(field)) : copy_text("", 0);
		entry->bytes += entry->fields[i].len;
	}
	entry->in_texts = true;
	MemoryContextSwitchTo(old);
}

/* The values that name a letter. */
static void
put_key(PpLedger *ledger, int epoch, const PpId *id, Oid *types, Datum *values)
{
	types[0] = TEXTOID;
	types[1] = INT4OID;
	types[2] = pp_id_type_oid(ledger->ext);
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = Int32GetDatum(epoch);
	values[2] = PointerGetDatum(id);
}

/*
 * pp_dead_letter_load
 *		Makes the entry of a letter again, in `cxt`, not normalized yet.  Returns false when the
 *		letter is gone.  SPI must be connected.
 */
bool
pp_dead_letter_load(PpLedger *ledger, MemoryContext cxt, const PpLetterKey *key, PpEntry *entry)
{
	SPIPlanPtr *plan = &ledger->plans[PP_LEDGER_PLAN_LOAD_LETTER];
	Oid types[3];
	Datum values[3];
	char *sql = NULL;
	HeapTuple row;
	TupleDesc desc;
	Datum fields;
	bool isnull;

	put_key(ledger, key->epoch, &key->id, types, values);
	if (*plan == NULL)
		sql = psprintf("SELECT sqlstate, attempts, overtaken, fields "
					   "FROM %s.postpipe_dead_letter "
					   "WHERE pipeline = $1 AND epoch = $2 AND id OPERATOR(%s.=) $3",
					   ledger->ext->schema_name, ledger->ext->schema_name);
	if (pp_store_execute_plan(plan, sql, 3, types, values, NULL) == 0)
		return false;
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	memset(entry, 0, sizeof(*entry));
	entry->id = key->id;
	entry->letter = MemoryContextAllocZero(cxt, sizeof(PpLetter));
	entry->letter->epoch = key->epoch;
	fields = SPI_getbinval(row, desc, 1, &isnull);
	{
		const char *s = TextDatumGetCString(fields);

		entry->letter->sqlstate = MAKE_SQLSTATE(s[0], s[1], s[2], s[3], s[4]);
	}
	entry->letter->attempts = (int) pp_store_get_number(row, desc, 2);
	entry->letter->overtaken = DatumGetBool(SPI_getbinval(row, desc, 3, &isnull));
	fields = SPI_getbinval(row, desc, 4, &isnull);
	if (!isnull)
		read_fields(fields, cxt, entry);
	SPI_freetuptable(SPI_tuptable);
	return true;
}

/*
 * pp_dead_letter_lock
 *		Locks the letter of an entry until the end of the transaction.  Returns false when somebody
 *		else has it, or it is not what it was when it was loaded.  SPI must be connected.
 */
bool
pp_dead_letter_lock(PpLedger *ledger, const PpEntry *entry)
{
	SPIPlanPtr *plan = &ledger->plans[PP_LEDGER_PLAN_LOCK_LETTER];
	Oid types[5];
	Datum values[5];
	char *sql = NULL;
	bool found;

	put_key(ledger, entry->letter->epoch, &entry->id, types, values);
	types[3] = BOOLOID;
	values[3] = BoolGetDatum(entry->letter->overtaken);
	types[4] = INT4OID;
	values[4] = Int32GetDatum(entry->letter->attempts);
	if (*plan == NULL)
		sql = psprintf("SELECT FROM %s.postpipe_dead_letter "
					   "WHERE pipeline = $1 AND epoch = $2 AND id OPERATOR(%s.=) $3 "
					   "AND state = 'retrying' AND overtaken = $4 AND attempts = $5 "
					   "FOR UPDATE SKIP LOCKED",
					   ledger->ext->schema_name, ledger->ext->schema_name);
	found = pp_store_execute_plan(plan, sql, 5, types, values, NULL) == 1;
	SPI_freetuptable(SPI_tuptable);
	return found;
}

/*
 * pp_dead_letter_failed
 *		The entry of a letter has failed again, with entry->error.  Sets entry->retrying to whether
 *		there will be another attempt; by_hand, nothing is changed about that, and it is not one of the
 *		attempts.  SPI must be connected.
 */
void
pp_dead_letter_failed(PpLedger *ledger, const PpPipeline *p, PpEntry *entry, bool by_hand)
{
	PpLedgerPlan which =
		by_hand ? PP_LEDGER_PLAN_LETTER_FAILED_BY_HAND : PP_LEDGER_PLAN_LETTER_FAILED;
	SPIPlanPtr *plan = &ledger->plans[which];
	Oid types[3 + ERROR_COLUMNS + 2];
	Datum values[lengthof(types)];
	char nulls[lengthof(types) + 1];
	TimestampTz next = next_retry_at(p, entry, entry->letter->attempts + 1);
	int n = by_hand ? 3 + ERROR_COLUMNS : lengthof(types);
	char *sql = NULL;

	memset(nulls, ' ', lengthof(types));
	nulls[lengthof(types)] = '\0';
	put_key(ledger, entry->letter->epoch, &entry->id, types, values);
	for (int i = 0; i < ERROR_COLUMNS + 1; i++)
		types[3 + i] = TEXTOID;
	put_error(entry->error, &values[3], &nulls[3]);
	values[12] = CStringGetTextDatum(next ? "retrying" : "dead");
	types[13] = TIMESTAMPTZOID;
	nulls[13] = next ? ' ' : 'n';
	values[13] = TimestampTzGetDatum(next);
	entry->retrying = next != 0;
	if (*plan == NULL)
		sql = psprintf("UPDATE %s.postpipe_dead_letter SET "
					   "last_failed_at = now(), sqlstate = $4, message = $5, detail = $6, "
					   "hint = $7, context = $8, schema_name = $9, table_name = $10, "
					   "column_name = $11, constraint_name = $12%s "
					   "WHERE pipeline = $1 AND epoch = $2 AND id OPERATOR(%s.=) $3",
					   ledger->ext->schema_name,
					   by_hand ? "" : ", attempts = attempts + 1, state = $13, next_retry_at = $14",
					   ledger->ext->schema_name);
	pp_store_execute_plan(plan, sql, n, types, values, nulls);
}

/* The entry of a letter is settled: deletes the letter. SPI must be connected. */
void
pp_dead_letter_remove(PpLedger *ledger, const PpEntry *entry)
{
	SPIPlanPtr *plan = &ledger->plans[PP_LEDGER_PLAN_REMOVE_LETTER];
	Oid types[3];
	Datum values[3];
	char *sql = NULL;

	put_key(ledger, entry->letter->epoch, &entry->id, types, values);
	if (*plan == NULL)
		sql = psprintf("DELETE FROM %s.postpipe_dead_letter "
					   "WHERE pipeline = $1 AND epoch = $2 AND id OPERATOR(%s.=) $3",
					   ledger->ext->schema_name, ledger->ext->schema_name);
	pp_store_execute_plan(plan, sql, 3, types, values, NULL);
}

/*
 * pp_dead_letter_deliver
 *		A worker has come to an entry that was skipped: its letter is one of this epoch now.  Returns
 *		false when it is gone; then the entry is no skipped one any more.  SPI must be connected.
 */
bool
pp_dead_letter_deliver(PpLedger *ledger, PpEntry *entry, const uint64 *key_hash)
{
	SPIPlanPtr *plan = &ledger->plans[PP_LEDGER_PLAN_DELIVER_LETTER];
	Oid types[6];
	Datum values[6];
	char nulls[] = "      ";
	char *sql = NULL;

	put_key(ledger, entry->skipped, &entry->id, types, values);
	types[3] = types[4] = INT4OID;
	values[3] = Int32GetDatum(ledger->epoch);
	values[4] = Int32GetDatum(ledger->worker);
	types[5] = INT8OID;
	nulls[5] = key_hash ? ' ' : 'n';
	values[5] = Int64GetDatum(key_hash ? (int64) *key_hash : 0);
	if (*plan == NULL)
		sql = psprintf("UPDATE %s.postpipe_dead_letter SET undelivered = false, epoch = $4, "
					   "worker = $5, key_hash = $6 "
					   "WHERE pipeline = $1 AND epoch = $2 AND id OPERATOR(%s.=) $3 "
					   "AND undelivered",
					   ledger->ext->schema_name, ledger->ext->schema_name);
	if (pp_store_execute_plan(plan, sql, 6, types, values, nulls) > 0)
		return true;
	entry->skipped = 0;
	return false;
}

/* How many dead letters a pipeline has. From a backend; SPI must not be connected. */
int64
pp_dead_letter_count(const PpExtension *ext, const char *pipeline)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(pipeline)};
	PpStoreScope store;
	int64 n;

	pp_store_begin(&store, ext);
	SPI_execute_with_args(
		psprintf("SELECT count(*) FROM %s.postpipe_dead_letter WHERE pipeline = $1",
				 ext->schema_name),
		lengthof(types), types, values, NULL, false, 0);
	n = pp_store_get_number(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	pp_store_end(&store);
	return n;
}

/*
 * pp_dead_letter_discard
 *		Removes the letters that `chosen` selects, a query of columns epoch and id with these
 *		parameters, the first of which is the pipeline; they count as discarded, if they counted at all.
 *		By their keys: the row that a lock was waited for may be another version of it.  SPI must be
 *		connected.  Returns how many they were.
 */
int64
pp_dead_letter_discard(const PpExtension *ext, const char *chosen, int n, Oid *types, Datum *values,
					   const char *nulls)
{
	const char *s = ext->schema_name;

	SPI_execute_with_args(
		psprintf(
			"WITH chosen AS MATERIALIZED (%s), "
			"gone AS (DELETE FROM %s.postpipe_dead_letter d USING chosen c "
			"WHERE d.pipeline = $1 AND d.epoch = c.epoch AND d.id OPERATOR(%s.=) c.id "
			"RETURNING d.epoch, d.id, d.undelivered), "
			"sums AS (INSERT INTO %s.postpipe_ledger (pipeline, epoch, worker, first_id, "
			"last_id, applied, filtered, dead, discarded, lost, ids) "
			"SELECT $1, epoch, 0, %s.min(id), %s.max(id), 0, 0, -count(*), count(*), 0, "
			"'\\x01' FROM gone WHERE NOT undelivered GROUP BY epoch) SELECT count(*) FROM gone",
			chosen, s, s, s, s, s),
		n, types, values, nulls, false, 0);
	return pp_store_get_number(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
}
