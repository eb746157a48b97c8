/*
 * pipeline.c
 *		Read and write pipeline definitions.
 *
 * Definitions are read by heap scan, not through SPI: the views show them to roles that may not
 * read the table, and a supervisor must not leave statements in pg_stat_statements.
 */
#include "pipeline.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xlog.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "redis_server.h"
#include "store.h"

/* Columns of postpipe_pipeline, in the script's order. */
enum
{
	COL_PIPELINE = 1,
	COL_OWNER,
	COL_STREAM,
	COL_GROUP,
	COL_REDIS,
	COL_TARGET,
	COL_KEY,
	COL_ON_CONFLICT,
	COL_NEWER_BY,
	COL_COLUMNS,
	COL_EVENT_TYPES,
	COL_STATEMENT,
	COL_SEARCH_PATH,
	COL_WORKERS,
	COL_ENABLED,
	COL_ENABLED_REASON,
	COL_OPTIONS,
	COL_SYSTEM_IDENTIFIER,
	COL_DATABASE_OID,
	COL_CREATED_AT,
	COL_ALTERED_AT,
	COL_DROPPED,
	COL_EXTENSION_OID,
	COL_COUNT = COL_EXTENSION_OID
};

static char *
text_or_null(const Datum *values, const bool *nulls, int col)
{
	return nulls[col - 1] ? NULL : TextDatumGetCString(values[col - 1]);
}

static List *
text_array(const Datum *values, const bool *nulls, int col)
{
	List *result = NIL;
	Datum *elems;
	bool *elem_nulls;
	int n;

	if (nulls[col - 1])
		return NIL;
	deconstruct_array(DatumGetArrayTypeP(values[col - 1]), TEXTOID, -1, false, TYPALIGN_INT, &elems,
					  &elem_nulls, &n);
	for (int i = 0; i < n; i++)
		if (!elem_nulls[i])
			result = lappend(result, TextDatumGetCString(elems[i]));
	return result;
}

/* Looks for the pipeline's own Redis server, if it has one, as it is now. */
void
pp_pipeline_find_redis(PpPipeline *p)
{
	memset(&p->redis_url, 0, sizeof(p->redis_url));
	p->redis_error = NULL;
	if (p->redis == NULL)
		return;
	p->redis_error = pp_redis_server_find(p->redis, p->owner, &p->redis_url);
	p->version = hash_combine64(p->version,
								hash_bytes_extended((unsigned char *) &p->redis_url,
													sizeof(p->redis_url), p->redis_error != NULL));
}

/* Copies where the pipeline's Redis is.  Returns NULL, or why there is none. */
const char *
pp_pipeline_redis(const PpPipeline *p, PpRedisUrl *url)
{
	if (p->redis == NULL)
		pp_guc_redis_url(url);
	else
		*url = p->redis_url;
	return p->redis_error;
}

static PpPipeline *
read_row(const PpExtension *ext, HeapTuple tuple, TupleDesc desc)
{
	PpPipeline *p = palloc0(sizeof(PpPipeline));
	Datum values[COL_COUNT];
	bool nulls[COL_COUNT];

	if (desc->natts < COL_COUNT)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("extension postpipe is older than its library %s", PP_VERSION),
						errhint("Run ALTER EXTENSION postpipe UPDATE.")));
	heap_deform_tuple(tuple, desc, values, nulls);
	p->name = text_or_null(values, nulls, COL_PIPELINE);
	p->owner = DatumGetObjectId(values[COL_OWNER - 1]);
	p->stream = text_or_null(values, nulls, COL_STREAM);
	p->group = text_or_null(values, nulls, COL_GROUP);
	p->redis = text_or_null(values, nulls, COL_REDIS);
	p->target = text_or_null(values, nulls, COL_TARGET);
	p->key = text_array(values, nulls, COL_KEY);
	p->on_conflict = text_or_null(values, nulls, COL_ON_CONFLICT);
	p->newer_by = text_or_null(values, nulls, COL_NEWER_BY);
	p->columns = nulls[COL_COLUMNS - 1] ? NULL : DatumGetJsonbPCopy(values[COL_COLUMNS - 1]);
	p->event_types = text_array(values, nulls, COL_EVENT_TYPES);
	p->statement = text_or_null(values, nulls, COL_STATEMENT);
	p->search_path = text_or_null(values, nulls, COL_SEARCH_PATH);
	p->workers = DatumGetInt32(values[COL_WORKERS - 1]);
	p->enabled = DatumGetBool(values[COL_ENABLED - 1]);
	p->enabled_reason = text_or_null(values, nulls, COL_ENABLED_REASON);
	p->options = DatumGetJsonbPCopy(values[COL_OPTIONS - 1]);
	p->system_identifier =
		nulls[COL_SYSTEM_IDENTIFIER - 1] ? 0 : DatumGetInt64(values[COL_SYSTEM_IDENTIFIER - 1]);
	p->database_oid =
		nulls[COL_DATABASE_OID - 1] ? InvalidOid : DatumGetObjectId(values[COL_DATABASE_OID - 1]);
	p->extension_oid =
		nulls[COL_EXTENSION_OID - 1] ? InvalidOid : DatumGetObjectId(values[COL_EXTENSION_OID - 1]);
	p->at_home = p->system_identifier == (int64) GetSystemIdentifier() &&
				 p->database_oid == MyDatabaseId && p->extension_oid == ext->oid;
	p->created_at = nulls[COL_CREATED_AT - 1] ? 0 : DatumGetTimestampTz(values[COL_CREATED_AT - 1]);
	p->altered_at = nulls[COL_ALTERED_AT - 1] ? 0 : DatumGetTimestampTz(values[COL_ALTERED_AT - 1]);
	p->dropped = DatumGetBool(values[COL_DROPPED - 1]);
	p->changed_here = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	p->version = hash_combine64(
		HeapTupleHeaderGetRawXmin(tuple->t_data),
		hash_bytes_extended((unsigned char *) &tuple->t_self, sizeof(tuple->t_self), 1));
	pp_pipeline_find_redis(p);
	return p;
}

/*
 * pp_pipeline_list
 *		All pipelines of this database, the built-in one first, in the current memory context.
 *		Needs a transaction and an active snapshot.
 */
List *
pp_pipeline_list(const PpExtension *ext)
{
	Relation rel = table_open(pp_relation_oid(ext, "postpipe_pipeline"), AccessShareLock);
	TableScanDesc scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	HeapTuple tuple;
	List *result = NIL;
	bool posts_stored = false;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		PpPipeline *p = read_row(ext, tuple, RelationGetDescr(rel));

		posts_stored |= strcmp(p->name, PP_POSTS_PIPELINE) == 0;
		if (!p->dropped)
			result = lappend(result, p);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	if (!posts_stored)
		result = lcons(pp_posts_definition(ext), result);
	return result;
}

/* As pp_pipeline_list(), but as they are now, whatever the active snapshot has. */
List *
pp_pipeline_list_now(const PpExtension *ext)
{
	List *result;

	PushActiveSnapshot(GetLatestSnapshot());
	result = pp_pipeline_list(ext);
	PopActiveSnapshot();
	return result;
}

/* The one of this name, or NULL. */
PpPipeline *
pp_pipeline_find(List *pipelines, const char *name)
{
	ListCell *lc;

	foreach (lc, pipelines)
	{
		PpPipeline *p = lfirst(lc);

		if (strcmp(p->name, name) == 0)
			return p;
	}
	return NULL;
}

/* One pipeline, or NULL. As pp_pipeline_list(). */
PpPipeline *
pp_pipeline_get(const PpExtension *ext, const char *name)
{
	return pp_pipeline_find(pp_pipeline_list(ext), name);
}

/*
 * Is it at home here?  A dump, a template copy or a pg_upgrade carries its row to another cluster
 * or database; there it must not start to take production's entries by itself.  Nor where a dump is restored over
 * the database that it was made of, as by pg_restore --clean: the tables are as they were, and there is no ledger.
 */
bool
pp_pipeline_is_armed(const PpPipeline *p)
{
	return p->builtin || p->at_home;
}

static void
set_text(Datum *values, bool *nulls, int col, const char *value)
{
	nulls[col - 1] = value == NULL;
	if (value != NULL)
		values[col - 1] = CStringGetTextDatum(value);
}

static void
set_text_array(Datum *values, bool *nulls, int col, List *strings)
{
	Datum *elems = palloc(Max(list_length(strings), 1) * sizeof(Datum));
	int n = 0;
	ListCell *lc;

	nulls[col - 1] = strings == NIL;
	foreach (lc, strings)
		elems[n++] = CStringGetTextDatum((char *) lfirst(lc));
	if (strings != NIL)
		values[col - 1] =
			PointerGetDatum(construct_array(elems, n, TEXTOID, -1, false, TYPALIGN_INT));
}

static const Oid column_types[COL_COUNT] = {
	TEXTOID,      REGROLEOID,     TEXTOID,        TEXTOID,  TEXTOID,      TEXTOID,
	TEXTARRAYOID, TEXTOID,        TEXTOID,        JSONBOID, TEXTARRAYOID, TEXTOID,
	TEXTOID,      INT4OID,        BOOLOID,        TEXTOID,  JSONBOID,     INT8OID,
	OIDOID,       TIMESTAMPTZOID, TIMESTAMPTZOID, BOOLOID,  OIDOID};

/* The row of a definition, at home where it was, or here if it is new. */
static void
set_row(const PpExtension *ext, const PpPipeline *p, Datum *values, bool *nulls)
{
	bool is_new = p->created_at == 0;

	set_text(values, nulls, COL_PIPELINE, p->name);
	values[COL_OWNER - 1] = ObjectIdGetDatum(p->owner);
	set_text(values, nulls, COL_STREAM, p->stream);
	set_text(values, nulls, COL_GROUP, p->group);
	set_text(values, nulls, COL_REDIS, p->redis);
	set_text(values, nulls, COL_TARGET, p->target);
	set_text_array(values, nulls, COL_KEY, p->key);
	set_text(values, nulls, COL_ON_CONFLICT, p->on_conflict);
	set_text(values, nulls, COL_NEWER_BY, p->newer_by);
	nulls[COL_COLUMNS - 1] = p->columns == NULL;
	values[COL_COLUMNS - 1] = PointerGetDatum(p->columns);
	set_text_array(values, nulls, COL_EVENT_TYPES, p->event_types);
	set_text(values, nulls, COL_STATEMENT, p->statement);
	set_text(values, nulls, COL_SEARCH_PATH, p->search_path);
	values[COL_WORKERS - 1] = Int32GetDatum(p->workers);
	values[COL_ENABLED - 1] = BoolGetDatum(p->enabled);
	set_text(values, nulls, COL_ENABLED_REASON, p->enabled_reason);
	values[COL_OPTIONS - 1] = JsonbPGetDatum(p->options);
	values[COL_SYSTEM_IDENTIFIER - 1] =
		Int64GetDatum(is_new ? (int64) GetSystemIdentifier() : p->system_identifier);
	values[COL_DATABASE_OID - 1] = ObjectIdGetDatum(is_new ? MyDatabaseId : p->database_oid);
	values[COL_CREATED_AT - 1] =
		TimestampTzGetDatum(is_new ? GetCurrentTransactionStartTimestamp() : p->created_at);
	nulls[COL_ALTERED_AT - 1] = p->altered_at == 0;
	values[COL_ALTERED_AT - 1] = TimestampTzGetDatum(p->altered_at);
	values[COL_DROPPED - 1] = BoolGetDatum(p->dropped);
	values[COL_EXTENSION_OID - 1] = ObjectIdGetDatum(is_new ? ext->oid : p->extension_oid);
}

/* Stores a definition as a new row; the table's own constraints and trigger apply. */
void
pp_pipeline_insert(const PpExtension *ext, const PpPipeline *p)
{
	Datum values[COL_COUNT] = {0};
	bool nulls[COL_COUNT] = {0};
	StringInfoData sql;

	set_row(ext, p, values, nulls);
	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s.postpipe_pipeline VALUES (", ext->schema_name);
	for (int i = 1; i <= COL_COUNT; i++)
		appendStringInfo(&sql, "%s$%d", i > 1 ? ", " : "", i);
	appendStringInfoChar(&sql, ')');
	pp_store_execute(ext, sql.data, COL_COUNT, column_types, values, nulls);
}

/* Throws when no row was written, though there is one: then this transaction's snapshot is older. */
void
pp_pipeline_check_written(uint64 rows)
{
	if (rows == 0)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("could not serialize access due to concurrent update")));
}

/*
 * pp_pipeline_update
 *		Writes what can be altered, and no more.  The built-in pipeline gets a row.
 */
void
pp_pipeline_update(const PpExtension *ext, const PpPipeline *p)
{
	Datum values[COL_COUNT] = {0};
	bool nulls[COL_COUNT] = {0};

	if (p->builtin)
	{
		pp_pipeline_insert(ext, p);
		return;
	}
	set_row(ext, p, values, nulls);
	pp_pipeline_check_written(pp_store_execute(
		ext,
		psprintf(
			"UPDATE %s.postpipe_pipeline SET owner = $%d, target = $%d, key = $%d, "
			"redis = $%d, on_conflict = $%d, newer_by = $%d, columns = $%d, event_types = $%d, "
			"statement = $%d, search_path = $%d, workers = $%d, options = $%d, "
			"altered_at = $%d WHERE pipeline = $%d",
			ext->schema_name, COL_OWNER, COL_TARGET, COL_KEY, COL_REDIS, COL_ON_CONFLICT,
			COL_NEWER_BY, COL_COLUMNS, COL_EVENT_TYPES, COL_STATEMENT, COL_SEARCH_PATH, COL_WORKERS,
			COL_OPTIONS, COL_ALTERED_AT, COL_PIPELINE),
		COL_COUNT, column_types, values, nulls));
}
