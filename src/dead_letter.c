/*
 * dead_letter.c
 *		Entries that could not be applied, with their bytes and the reason.
 *
 * Written in the transaction of the batch, into PostgreSQL and never only into Redis: under
 * maxmemory Redis refuses XADD just when it is needed.  The fields are kept as Redis sent them, so
 * an entry that is no JSON, no UTF-8, or holds a NUL is kept as well.
 */
#include "ledger.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#define DEAD_COLUMNS 18

static Datum
text_or_null(const char *value, char *null)
{
	*null = value ? ' ' : 'n';
	return value ? CStringGetTextDatum(value) : (Datum) 0;
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

/*
 * pp_dead_letter_store
 *		Writes the dead letter of an entry whose verdict is "dead".  SPI must be connected.
 */
void
pp_dead_letter_store(PpLedger *ledger, const PpEntry *entry, const char *stream)
{
	Oid types[DEAD_COLUMNS] = {TEXTOID,  INT4OID,        pp_id_type_oid(ledger->ext),
							   TEXTOID,  TEXTOID,        TEXTOID,
							   TEXTOID,  TEXTOID,        TEXTOID,
							   TEXTOID,  TEXTOID,        TEXTOID,
							   TEXTOID,  TIMESTAMPTZOID, INT4OID,
							   JSONBOID, BYTEAARRAYOID,  INT8OID};
	Datum values[DEAD_COLUMNS];
	char nulls[DEAD_COLUMNS + 1];
	const PpEntryError *error = entry->error;
	char *sql = NULL;

	memset(nulls, ' ', DEAD_COLUMNS);
	nulls[DEAD_COLUMNS] = '\0';
	values[0] = CStringGetTextDatum(ledger->pipeline);
	values[1] = Int32GetDatum(ledger->epoch);
	values[2] = PointerGetDatum(&entry->id);
	values[3] = CStringGetTextDatum(stream);
	values[4] = CStringGetTextDatum(unpack_sql_state(error->sqlstate));
	values[5] = CStringGetTextDatum(error->message);
	values[6] = text_or_null(error->detail, &nulls[6]);
	values[7] = text_or_null(error->hint, &nulls[7]);
	values[8] = text_or_null(error->context, &nulls[8]);
	values[9] = text_or_null(error->schema_name, &nulls[9]);
	values[10] = text_or_null(error->table_name, &nulls[10]);
	values[11] = text_or_null(error->column_name, &nulls[11]);
	values[12] = text_or_null(error->constraint_name, &nulls[12]);
	values[13] = TimestampTzGetDatum(pp_id_time(entry->id));
	values[14] = Int32GetDatum(ledger->worker);
	nulls[15] = entry->event ? ' ' : 'n';
	values[15] = PointerGetDatum(entry->event);
	values[16] = fields_array(entry);
	values[17] = Int64GetDatum((int64) entry->bytes);
	if (ledger->dead_plan == NULL)
		sql = psprintf("INSERT INTO %s.postpipe_dead_letter (pipeline, epoch, id, stream, state, "
					   "sqlstate, message, detail, hint, context, schema_name, table_name, "
					   "column_name, constraint_name, attempts, first_failed_at, last_failed_at, "
					   "added_at, worker, event, fields, size_bytes) "
					   "VALUES ($1, $2, $3, $4, 'dead', $5, $6, $7, $8, $9, $10, $11, $12, $13, 1, "
					   "now(), now(), $14, $15, $16, $17, $18) "
					   "ON CONFLICT (pipeline, epoch, id) DO UPDATE SET "
					   "attempts = postpipe_dead_letter.attempts + 1, last_failed_at = now()",
					   ledger->ext->schema_name);
	pp_store_execute_plan(&ledger->dead_plan, sql, DEAD_COLUMNS, types, values, nulls);
}

/* How many dead letters a pipeline has. From a backend; SPI must not be connected. */
int64
pp_dead_letter_count(const PpExtension *ext, const char *pipeline)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(pipeline)};

	return (int64) pp_store_execute(ext,
									psprintf("SELECT FROM %s.postpipe_dead_letter "
											 "WHERE pipeline = $1",
											 ext->schema_name),
									1, types, values, NULL);
}
