/*
 * sqlfuncs_consumers.c
 *		SQL functions about the group of a pipeline: its consumers, what is pending, making it,
 *		deleting consumers that nobody uses.
 *
 * They ask Redis while their transaction is open (sqlfuncs_redis.c), and are for members of the
 * pipeline's owner.  Which consumers may be deleted is decided here; that they are empty and idle is
 * decided by Redis in the moment of deleting.
 */
#include "sqlfuncs.h"

#include "catalog/pg_type.h"
#include "common/string.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "consumer.h"
#include "ledger.h"
#include "store.h"
#include "utf8.h"

#define PENDING_PAGE 1000

PG_FUNCTION_INFO_V1(postpipe_consumers);
PG_FUNCTION_INFO_V1(postpipe_pending);
PG_FUNCTION_INFO_V1(postpipe_create_group);
PG_FUNCTION_INFO_V1(postpipe_reap_consumers);

/* An argument that is an interval, in ms; `unset` when it is NULL. Throws when it is negative. */
int64
pp_interval_arg(FunctionCallInfo fcinfo, int n, const char *name, int64 unset)
{
	int64 ms;

	if (PG_ARGISNULL(n))
		return unset;
	ms = pp_interval_ms(PG_GETARG_INTERVAL_P(n));
	if (ms < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("%s must not be negative", name)));
	return ms;
}

/*
 * A consumer's name as text.  Redis takes any bytes; where they are no text of this database, those
 * that are not ASCII are written as \xHH.
 */
static char *
name_as_text(PpString name)
{
	StringInfoData buf;

	if (pp_utf8_is_valid(name.data, name.len) &&
		(GetDatabaseEncoding() == PG_UTF8 || pg_is_ascii(name.data)))
		return pnstrdup(name.data, name.len);
	initStringInfo(&buf);
	for (size_t i = 0; i < name.len; i++)
	{
		unsigned char c = (unsigned char) name.data[i];

		if (c >= ' ' && c < 0x7f)
			appendStringInfoChar(&buf, c);
		else
			appendStringInfo(&buf, "\\x%02X", c);
	}
	return buf.data;
}

/* Is this the consumer that is called so in SQL? */
bool
pp_function_names(PpString consumer, const char *name)
{
	return strcmp(name_as_text(consumer), name) == 0;
}

/* Throws when the group is not this pipeline's: another server's, or another pipeline owns it. */
void
pp_require_group(const PpExtension *ext, const PpPipeline *p)
{
	pp_require_armed(p);
	if (pp_store_progress_has(ext, p->name, "fenced"))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("consumer group \"%s\" of stream \"%s\" belongs to another owner "
						"than pipeline \"%s\"",
						p->group, p->stream, p->name),
				 errhint("If this pipeline is to read from now on, and the other one no more, "
						 "run postpipe_resume('%s', take_over => true).",
						 p->name)));
}

/* The consumers of the pipeline's group, or throws. */
PpConsumer *
pp_function_consumers(PpRedis *conn, const PpPipeline *p, int *n)
{
	PpConsumer *result;
	PpRedisError error;
	PpReply *reply;

	pp_stream_send_consumers(conn, p->stream, p->group);
	reply = pp_function_reply(conn);
	if (!pp_stream_parse_consumers(reply, &result, n, &error))
		pp_function_fail(reply);
	return result;
}

/* Are there others among these consumers of the pipeline's group than its workers? */
bool
pp_function_has_others(const PpPipeline *p, const PpConsumer *consumers, int n)
{
	for (int i = 0; i < n; i++)
		if (pp_consumer_worker(consumers[i].name, p->name) == 0)
			return true;
	return false;
}

static void
put_seconds(PpRow *row, int64 ms)
{
	pp_row_float8(row, (double) ms / 1000, ms < 0);
}

/* postpipe_consumers(pipeline): XINFO CONSUMERS, and whose they are. */
Datum
postpipe_consumers(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;
	PpRedis *conn;
	PpConsumer *consumers;
	int n;

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	p = pp_require_pipeline(&ext, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	conn = pp_function_connect(p);
	consumers = pp_function_consumers(conn, p, &n);
	for (int i = 0; i < n; i++)
	{
		int pid = pp_consumer_pid(consumers[i].name);
		PpRow row = {0};

		pp_row_text(&row, name_as_text(consumers[i].name));
		pp_row_int8(&row, consumers[i].pending, consumers[i].pending < 0);
		put_seconds(&row, consumers[i].idle_ms);
		put_seconds(&row, consumers[i].inactive_ms);
		pp_row_put(&row, BoolGetDatum(pp_consumer_is_ours(consumers[i].name)), false);
		pp_row_put(&row, Int32GetDatum(pid), pid <= 0);
		pp_row_emit(fcinfo, &row);
	}
	pp_redis_close(conn);
	return (Datum) 0;
}

/* The rows of a page of XPENDING; *last becomes its last ID. */
static void
emit_pending(FunctionCallInfo fcinfo, const PpExtension *ext, const PpPipeline *p,
			 const PpReply *reply, PpId *last)
{
	int n = (int) reply->len;
	PpPending *pending = palloc(n * sizeof(PpPending));
	PpId *ids = palloc(n * sizeof(PpId));
	bool *settled = palloc(n * sizeof(bool));
	PpRedisError error;

	for (int i = 0; i < n; i++)
	{
		if (!pp_stream_parse_pending_line(&reply->items[i], &pending[i], &error))
			pp_function_fail(reply);
		ids[i] = pending[i].id;
	}
	pp_ledger_settled(ext, p->name, ids, n, settled);
	for (int i = 0; i < n; i++)
	{
		PpRow row = {0};

		pp_row_id(&row, pending[i].id, false);
		pp_row_text(&row, name_as_text(pending[i].consumer));
		put_seconds(&row, pending[i].idle_ms);
		pp_row_int8(&row, pending[i].deliveries, pending[i].deliveries < 0);
		pp_row_put(&row, BoolGetDatum(settled[i]), false);
		pp_row_emit(fcinfo, &row);
	}
	*last = ids[n - 1];
}

/* postpipe_pending(pipeline, max_entries): XPENDING, and whether the ledger has them as settled. */
Datum
postpipe_pending(PG_FUNCTION_ARGS)
{
	int left;
	PpId last = {0, 0};
	PpExtension ext;
	PpPipeline *p;
	PpRedis *conn;
	MemoryContext page;
	MemoryContext old;

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	p = pp_require_pipeline(&ext, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	left = pp_positive_arg(fcinfo, 1, "max_entries");
	conn = pp_function_connect(p);
	page = AllocSetContextCreate(CurrentMemoryContext, "postpipe page", ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(page);
	while (left > 0)
	{
		int count = Min(left, PENDING_PAGE);
		PpReply *reply;

		MemoryContextReset(page);
		pp_redis_reply_target(conn, page, PP_FUNCTION_REPLY);
		pp_stream_send_pending(conn, p->stream, p->group, last, PP_ID_MAX, count);
		reply = pp_function_reply(conn);
		if (reply->type != PP_REPLY_ARRAY)
			pp_function_fail(reply);
		if (reply->len > 0)
			emit_pending(fcinfo, &ext, p, reply, &last);
		if (reply->len < count)
			break;
		left -= count;
	}
	MemoryContextSwitchTo(old);
	pp_redis_close(conn);
	return (Datum) 0;
}

/* postpipe_create_group(pipeline, start_id): XGROUP CREATE; false when the group is there already. */
Datum
postpipe_create_group(PG_FUNCTION_ARGS)
{
	char *start_id = text_to_cstring(PG_GETARG_TEXT_PP(1));
	PpExtension ext;
	PpPipeline *p;
	PpRedis *conn;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_create_group()");
	pp_require_extension(&ext);
	p = pp_require_pipeline(&ext, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	pp_require_group(&ext, p);
	pp_check_start_id(start_id);
	conn = pp_function_connect(p);
	pp_stream_send_create_group(conn, p->stream, p->group, start_id);
	PG_RETURN_BOOL(!pp_function_failed_with(pp_function_reply(conn), "redis_busygroup"));
}

/* Those that may be deleted, or the one that was asked for; how many. The others are not shown. */
static int
choose(const PpExtension *ext, const PpPipeline *p, const char *only, PpConsumer *consumers,
	   bool *may_go, int n, bool *foreign)
{
	List *pipelines = pp_pipeline_list(ext);
	int chosen = 0;

	for (int i = 0; i < n; i++)
	{
		PpConsumerKind kind = pp_consumer_kind(pipelines, p, consumers[i].name);
		bool may = pp_consumer_has_no_worker(kind, consumers[i].name);

		if (only != NULL ? !pp_function_names(consumers[i].name, only) : !may)
			continue;
		/* One of a database that does not tell: only if it is asked for by its name. */
		*foreign |= kind == PP_CONSUMER_FOREIGN;
		may_go[chosen] =
			may || (kind == PP_CONSUMER_UNKNOWN && pp_consumer_pid(consumers[i].name) == 0);
		consumers[chosen++] = consumers[i];
	}
	return chosen;
}

/* Has Redis delete those that are empty and idle; puts what it says into `reaped`. */
static void
reap(PpRedis *conn, const PpPipeline *p, int64 min_idle, const PpConsumer *consumers, int n,
	 PpReaped *reaped)
{
	PpString *names = palloc(n * sizeof(PpString));
	PpRedisError error;
	PpReply *reply;

	for (int i = 0; i < n; i++)
		names[i] = consumers[i].name;
	pp_stream_send_reap(conn, p->stream, p->group, min_idle, names, n);
	reply = pp_function_reply(conn);
	if (!pp_stream_parse_reap(reply, n, reaped, &error))
		pp_function_fail(reply);
	pfree(names);
}

/* A row for each; those that may go are deleted, unless it is a dry run. */
static void
reap_and_show(FunctionCallInfo fcinfo, PpRedis *conn, const PpPipeline *p, int64 min_idle,
			  const PpConsumer *consumers, const bool *may_go, int n)
{
	bool dry_run = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);

	for (int i = 0; i < n;)
	{
		PpReaped reaped[PP_REAP_PAGE];
		int page = 1;

		while (i + page < n && page < PP_REAP_PAGE && may_go[i + page] == may_go[i])
			page++;
		for (int j = 0; j < page; j++)
		{
			reaped[j].idle_ms = consumers[i + j].idle_ms;
			reaped[j].pending = consumers[i + j].pending;
			reaped[j].reaped = may_go[i] && reaped[j].pending == 0 && reaped[j].idle_ms >= min_idle;
		}
		if (may_go[i] && !dry_run)
			reap(conn, p, min_idle, &consumers[i], page, reaped);
		for (int j = 0; j < page; j++)
		{
			PpRow row = {0};

			/* Deleted by somebody else meanwhile. */
			if (reaped[j].idle_ms < 0)
				continue;
			pp_row_text(&row, name_as_text(consumers[i + j].name));
			put_seconds(&row, reaped[j].idle_ms);
			pp_row_int8(&row, reaped[j].pending, false);
			pp_row_put(&row, BoolGetDatum(reaped[j].reaped), false);
			pp_row_emit(fcinfo, &row);
		}
		i += page;
	}
}

/*
 * postpipe_reap_consumers(pipeline, min_idle, only_consumer, dry_run): deletes consumers that nobody
 * uses.  A dry run shows what would be deleted.
 */
Datum
postpipe_reap_consumers(PG_FUNCTION_ARGS)
{
	char *only = pp_text_arg(fcinfo, 2);
	int64 min_idle;
	PpExtension ext;
	PpPipeline *p;
	PpRedis *conn;
	PpConsumer *consumers;
	bool *may_go;
	bool foreign = false;
	int n;

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_reap_consumers()");
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	p = pp_require_pipeline(&ext, pp_required_text_arg(fcinfo, 0, "pipeline"));
	pp_require_group(&ext, p);
	min_idle = pp_interval_arg(fcinfo, 1, "min_idle", SECS_PER_HOUR * INT64CONST(1000));
	conn = pp_function_connect(p);
	consumers = pp_function_consumers(conn, p, &n);
	may_go = palloc0(Max(n, 1) * sizeof(bool));
	n = choose(&ext, p, only, consumers, may_go, n, &foreign);
	/* What they settled is not on record, and must not be taken for missing when they are gone. */
	if (foreign && (PG_ARGISNULL(3) || !PG_GETARG_BOOL(3)))
		pp_store_note_progress(&ext, p->name, "shared");
	reap_and_show(fcinfo, conn, p, min_idle, consumers, may_go, n);
	pp_redis_close(conn);
	return (Datum) 0;
}
