/*
 * sqlfuncs_test.c
 *		postpipe_test(): real entries through the real statement, or another one, and nothing of it stays.
 *
 * Each entry is run alone, as the pipeline runs it, in a subtransaction that is rolled back.  Nothing
 * is written to Redis, the ledger or the dead letters, and the pipeline goes on meanwhile: what is held
 * is the lock that a batch holds.  What a rollback does not take back stays: sequences advance, and so
 * does what a trigger does outside of this database.
 */
#include "sqlfuncs.h"

#include "executor/spi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "apply_internal.h"
#include "event.h"

#define MAX_ENTRIES 1000

PG_FUNCTION_INFO_V1(postpipe_test);

/* One entry, and the rows that came of it. */
typedef struct Trial
{
	PpEntry *entry;
	bool returned; /* the statement returns rows: they are in … */
	Datum rows;    /* … a jsonb array */
} Trial;

/* The newest entries, at most n of them. */
static PpRange
newest(PpRedis *conn, const PpPipeline *p, int n)
{
	PpRange range = pp_function_range(p, "-", "+");
	PpReply *reply;
	PpId first;

	pp_redis_send(conn, "XREVRANGE %s + - COUNT %d", p->stream, n);
	reply = pp_function_reply(conn);
	if (reply->type != PP_REPLY_ARRAY)
		pp_function_fail(reply);
	if (reply->len > 0 && pp_reply_is(&reply->items[reply->len - 1], PP_REPLY_ARRAY, 1) &&
		pp_stream_parse_id(&reply->items[reply->len - 1].items[0], &first))
		range.after = pp_id_previous(first);
	return range;
}

/* What the pipeline is to apply next: what is pending, or else what is unread; or else the newest. */
static PpRange
next_entries(PpRedis *conn, const PpPipeline *p, int n)
{
	PpRange range = pp_function_range(p, "-", "+");
	PpStreamFacts group = pp_function_group(conn, p);
	PpBatch peeked = {.cxt = AllocSetContextCreate(CurrentMemoryContext, "postpipe test peek",
												   ALLOCSET_DEFAULT_SIZES)};
	PpRange rest;
	PpReply *reply;
	PpRedisError error;
	bool found;

	if (group.group_exists)
	{
		range.after = group.last_delivered;
		pp_stream_send_pending(conn, p->stream, p->group, (PpId){0, 0}, PP_ID_MAX, 1);
		reply = pp_function_reply(conn);
		if (reply->type != PP_REPLY_ARRAY)
			pp_function_fail(reply);
		if (reply->len > 0 && !pp_stream_parse_pending(&reply->items[0], &range.after, &error))
			pp_function_fail(reply);
		if (reply->len > 0)
			range.after = pp_id_previous(range.after);
	}
	rest = range;
	found = pp_function_next_page(conn, &rest, 1, &peeked);
	pp_redis_reply_target(conn, CurrentMemoryContext, PP_FUNCTION_REPLY);
	MemoryContextDelete(peeked.cxt);
	return found ? range : newest(conn, p, n);
}

static void
run_entry(PpApply *a, void *arg)
{
	Trial *trial = arg;
	StringInfoData rows;

	initStringInfo(&rows);
	pp_statement_prepare(a->statement);
	trial->returned = pp_statement_show(a->statement, trial->entry, &rows);
	trial->rows = DirectFunctionCall1(jsonb_in, CStringGetDatum(psprintf("[%s]", rows.data)));
}

static void
emit(FunctionCallInfo fcinfo, const Trial *trial, const PpEntryError *error)
{
	bool filtered = trial->entry->verdict == PP_VERDICT_FILTERED;
	PpRow row = {0};

	pp_row_id(&row, trial->entry->id, false);
	pp_row_put(&row, BoolGetDatum(error == NULL), false);
	pp_row_text(&row, error ? unpack_sql_state(error->sqlstate) : NULL);
	pp_row_text(&row, error      ? error->message
					  : filtered ? "filtered: its type is not one of event_types"
								 : NULL);
	pp_row_text(&row, error ? error->detail : NULL);
	pp_row_put(&row, trial->rows, error != NULL || !trial->returned);
	pp_row_emit(fcinfo, &row);
}

static void
try_entry(FunctionCallInfo fcinfo, PpApply *a, PpEntry *entry)
{
	Trial trial = {.entry = entry};
	PpEntryError *error;

	CHECK_FOR_INTERRUPTS();
	MemoryContextReset(a->call_cxt);
	pp_event_normalize(entry, a->pipeline->event_types);
	error = entry->error;
	if (entry->verdict == PP_VERDICT_OPEN)
		error = pp_apply_subtransaction(a, run_entry, &trial, false);
	/* Somebody cancelled; that is not the entry's. */
	if (error != NULL && error->moment)
		pp_function_throw(error);
	emit(fcinfo, &trial, error);
}

/* Reads the range page by page, and tries what is in it. */
static void
try_range(FunctionCallInfo fcinfo, PpApply *a, PpRedis *conn, PpRange *range, int left)
{
	PpBatch batch = {0};
	MemoryContext old;

	batch.cxt = AllocSetContextCreate(a->cxt, "postpipe test batch", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(batch.cxt);
	while (left > 0 && pp_function_next_page(conn, range, left, &batch))
	{
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "could not connect to SPI");
		MemoryContextSwitchTo(batch.cxt);
		for (int i = 0; i < batch.n; i++)
			try_entry(fcinfo, a, &batch.entries[i]);
		SPI_finish();
		MemoryContextSwitchTo(batch.cxt);
		left -= batch.n;
	}
	MemoryContextSwitchTo(old);
}

/* The pipeline, locked, with the other statement if there is one. */
static PpPipeline *
lock_with_statement(FunctionCallInfo fcinfo, PpExtension *ext, char *statement)
{
	PpPipeline *p = pp_function_lock_pipeline(fcinfo, ext, AccessShareLock);

	if (statement == NULL)
		return p;
	pp_check_may_act_as(p->owner);
	p->statement = statement;
	p->target = NULL;
	(void) pp_check_definition(ext, p, false);
	return p;
}

/* postpipe_test(pipeline, entries, from_id, statement): a verdict for each entry. */
Datum
postpipe_test(PG_FUNCTION_ARGS)
{
	int volatile entries = PG_ARGISNULL(1) ? 10 : PG_GETARG_INT32(1);
	char *from = pp_text_arg(fcinfo, 2);
	MemoryContext cxt;
	PpExtension ext;
	PpPipeline *p;
	PpRange range;
	PpRedis *conn;
	PpApply *a;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_test()");
	InitMaterializedSRF(fcinfo, 0);
	if (entries < 1 || entries > MAX_ENTRIES)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("entries must be between 1 and %d", MAX_ENTRIES)));
	pp_require_extension(&ext);
	pp_function_refuse_deferred("postpipe_test()");
	p = lock_with_statement(fcinfo, &ext, pp_text_arg(fcinfo, 3));
	conn = pp_function_connect(p);
	range = from ? pp_function_range(p, from, "+") : next_entries(conn, p, entries);
	cxt = AllocSetContextCreate(CurrentMemoryContext, "postpipe test", ALLOCSET_DEFAULT_SIZES);
	a = pp_function_apply_begin(cxt, &ext, p);
	PG_TRY();
	{
		try_range(fcinfo, a, conn, &range, entries);
	}
	PG_FINALLY();
	{
		pp_function_apply_end(a);
	}
	PG_END_TRY();
	pp_redis_close(conn);
	MemoryContextDelete(cxt);
	return (Datum) 0;
}
