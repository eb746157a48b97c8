/*
 * store.c
 *		SQL on the extension's own tables.
 *
 * In a backend the caller of a function may not write these tables himself: the statement runs as
 * the extension's owner, with a search_path in which nobody else's objects can be found.  Workers
 * and supervisors are the server's own processes and keep their plans.
 */
#include "store.h"

#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "guc.h"

/*
 * SQL names our tables by their schema.  Who owns that may drop it, the extension with it, and make one of that name with
 * tables of his own, while a function waits: so from here on it stays, and it is the one that was looked up.
 */
static void
keep_extension(const PpExtension *ext)
{
	LockDatabaseObject(ExtensionRelationId, ext->oid, 0, AccessShareLock);
	if (!pp_extension_is_there(ext))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("extension postpipe was dropped or its schema was renamed meanwhile")));
}

/*
 * pp_store_begin
 *		Connects SPI as the extension's owner.  pp_store_end() has to follow; an error between them
 *		puts everything back, as any abort does.  What was before is kept in the caller's scope: a
 *		statement may call functions that do the same.
 */
void
pp_store_begin(PpStoreScope *store, const PpExtension *ext)
{
	keep_extension(ext);
	GetUserIdAndSecContext(&store->user, &store->context);
	SetUserIdAndSecContext(ext->owner, store->context | SECURITY_RESTRICTED_OPERATION);
	store->nest_level = NewGUCNestLevel();
	pp_guc_set_for_call("search_path", PP_SAFE_PATH);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
}

void
pp_store_end(PpStoreScope *store)
{
	SPI_finish();
	AtEOXact_GUC(false, store->nest_level);
	SetUserIdAndSecContext(store->user, store->context);
}

/*
 * pp_store_by_index
 *		Lets the planner walk along indexes alone, up to the end of the caller's GUC nest level, or of the
 *		transaction: that marks what is left in them of rows that are gone, and any other scan would read those rows
 *		once more each time until the next vacuum.  Where there is no index it goes through the table all the same, at
 *		an estimate that would let any query be compiled.
 */
void
pp_store_by_index(void)
{
	pp_guc_set_for_call("enable_bitmapscan", "off");
	pp_guc_set_for_call("enable_seqscan", "off");
	pp_guc_set_for_call("jit", "off");
}

/*
 * pp_store_execute
 *		Runs one statement, its names qualified with ext->schema_name, as the extension's owner.
 *		Returns how many rows it touched.
 */
uint64
pp_store_execute(const PpExtension *ext, const char *sql, int nargs, const Oid *types,
				 const Datum *values, const bool *nulls)
{
	uint64 processed;
	char *null_chars = palloc0(nargs + 1);
	PpStoreScope store;

	for (int i = 0; i < nargs; i++)
		null_chars[i] = nulls && nulls[i] ? 'n' : ' ';
	pp_store_begin(&store, ext);
	if (SPI_execute_with_args(sql, nargs, (Oid *) types, (Datum *) values, null_chars, false, 0) <
		0)
		elog(ERROR, "could not execute \"%s\"", sql);
	processed = SPI_processed;
	pp_store_end(&store);
	return processed;
}

/* Runs SQL on a flag of the pipeline $1: %1$s in it stands for our schema, %2$s for the flag. */
static uint64
execute_for_flag(const PpExtension *ext, const char *pipeline, const char *flag, const char *sql)
{
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(pipeline)};

	return pp_store_execute(ext, psprintf(sql, ext->schema_name, flag), 1, types, values, NULL);
}

/*
 * pp_store_note_progress
 *		Sets a flag of postpipe_progress, of which the pipeline may have no row yet.  Throws what SQL
 *		throws.
 */
void
pp_store_note_progress(const PpExtension *ext, const char *pipeline, const char *flag)
{
	execute_for_flag(ext, pipeline, flag,
					 "INSERT INTO %1$s.postpipe_progress (pipeline, %2$s) VALUES ($1, true) "
					 "ON CONFLICT (pipeline) DO UPDATE SET %2$s = true "
					 "WHERE NOT postpipe_progress.%2$s");
}

/* Takes a flag of postpipe_progress back. */
void
pp_store_clear_progress(const PpExtension *ext, const char *pipeline, const char *flag)
{
	execute_for_flag(ext, pipeline, flag,
					 "UPDATE %1$s.postpipe_progress SET %2$s = false WHERE pipeline = $1 AND %2$s");
}

/* Is a flag of postpipe_progress set? */
bool
pp_store_progress_has(const PpExtension *ext, const char *pipeline, const char *flag)
{
	return execute_for_flag(ext, pipeline, flag,
							"SELECT FROM %1$s.postpipe_progress WHERE pipeline = $1 AND %2$s") > 0;
}

/* IDs as an array for SQL. */
Datum
pp_store_id_array(const PpExtension *ext, const PpId *ids, int n)
{
	Datum *elems = palloc((n + 1) * sizeof(Datum));

	for (int i = 0; i < n; i++)
		elems[i] = PointerGetDatum(&ids[i]);
	return PointerGetDatum(
		construct_array(elems, n, pp_id_type_oid(ext), sizeof(PpId), false, TYPALIGN_DOUBLE));
}

/* The number in a column, from 1, of a row of a result: an int4, int8 or time; 0 if it is NULL. */
int64
pp_store_get_number(HeapTuple row, TupleDesc desc, int column)
{
	bool isnull;
	Datum value = SPI_getbinval(row, desc, column, &isnull);

	return SPI_gettypeid(desc, column) == INT4OID ? DatumGetInt32(value) : DatumGetInt64(value);
}

/* The ID in a column; 0-0 if it is NULL. */
PpId
pp_store_get_id(HeapTuple row, TupleDesc desc, int column)
{
	bool isnull;
	Datum value = SPI_getbinval(row, desc, column, &isnull);

	return isnull ? (PpId){0, 0} : *(PpId *) DatumGetPointer(value);
}

/*
 * pp_store_execute_plan
 *		In our own processes: runs a statement whose plan is kept in *plan.  SPI must be connected;
 *		results, if any, are in SPI_tuptable.
 */
uint64
pp_store_execute_plan(SPIPlanPtr *plan, const char *sql, int nargs, const Oid *types,
					  const Datum *values, const char *nulls)
{
	if (*plan == NULL)
	{
		SPIPlanPtr prepared = SPI_prepare(sql, nargs, (Oid *) types);

		if (prepared == NULL || SPI_keepplan(prepared) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", sql, SPI_result_code_string(SPI_result));
		*plan = prepared;
	}
	if (SPI_execute_plan(*plan, (Datum *) values, nulls, false, 0) < 0)
		elog(ERROR, "could not execute \"%s\"", sql);
	return SPI_processed;
}
