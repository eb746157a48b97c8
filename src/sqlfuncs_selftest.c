/*
 * sqlfuncs_selftest.c
 *		postpipe_selftest(): an event from XADD to its row and to its acknowledgement, step by step.
 *
 * It has a stream, a group and a table of its own, whose names are nobody else's, and does in this
 * backend what a worker does, with the worker's code: read through the group, run the statement, record
 * the entries, see them again, acknowledge them.  A worker itself cannot take part, as it would see
 * nothing of this transaction; "make smoke" has one.
 *
 * What is done in PostgreSQL is rolled back, whatever happens; what is done in Redis is deleted, and if
 * even that cannot be done any more, it expires.
 */
#include "sqlfuncs.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "apply_internal.h"
#include "event.h"
#include "guc.h"
#include "redis_reply.h"

#define EVENTS     3
#define EXPIRES_MS (10 * 60 * 1000)

PG_FUNCTION_INFO_V1(postpipe_selftest);

typedef struct Selftest
{
	FunctionCallInfo fcinfo;
	PpExtension ext;
	PpPipeline p;
	PpRedis *conn;
	PpApply *a;
	PpBatch batch;
	PpSteady end; /* when time is up */
	const char *step;
} Selftest;

static void
emit(Selftest *s, bool ok, const char *detail)
{
	PpRow row = {0};

	pp_row_text(&row, s->step);
	pp_row_put(&row, BoolGetDatum(ok), false);
	pp_row_text(&row, detail);
	pp_row_emit(s->fcinfo, &row);
}

/* The reply, which must not be an error. */
static PpReply *
reply_of(Selftest *s)
{
	PpReply *reply = pp_function_reply(s->conn);

	if (reply->type == PP_REPLY_ERROR)
		pp_function_fail(reply);
	return reply;
}

static void
expect(const char *what, int64 found, int64 expected)
{
	if (found != expected)
		ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION),
						errmsg("%s: " INT64_FORMAT ", not " INT64_FORMAT, what, found, expected)));
}

static char *
connect(Selftest *s)
{
	s->conn = pp_function_connect(NULL);
	return "Redis answers";
}

/* The table belongs to the extension's owner, as the statement is to run as somebody. */
static char *
create(Selftest *s)
{
	PpStoreScope store;

	pp_store_begin(&store, &s->ext);
	SPI_execute(psprintf("CREATE TABLE %s (id bigint PRIMARY KEY, v text, n integer)", s->p.target),
				false, 0);
	pp_store_end(&store);
	CommandCounterIncrement();
	pp_stream_send_create_group(s->conn, s->p.stream, s->p.group, "0");
	(void) reply_of(s);
	pp_redis_send(s->conn, "PEXPIRE %s %d", s->p.stream, EXPIRES_MS);
	(void) reply_of(s);
	s->a = pp_function_apply_begin(CurrentMemoryContext, &s->ext, &s->p);
	return psprintf("stream \"%s\", its group and table %s", s->p.stream, s->p.target);
}

/* The last one repeats the key of the one before. */
static char *
publish(Selftest *s)
{
	for (int i = 0; i < EVENTS; i++)
	{
		pp_redis_send(s->conn, "XADD %s * id %d v event-%d n %d", s->p.stream, Min(i, EVENTS - 2),
					  i, i);
		(void) reply_of(s);
	}
	return psprintf("%d events, the last two with one key", EVENTS);
}

/* Reads what is new, or with own_after what is pending, as the consumer. */
static void
read_group(Selftest *s, const PpId *own_after)
{
	PpRedisError error;
	PpReply *reply;

	pp_stream_send_read(s->conn, s->p.stream, s->p.group, "selftest", own_after, 10 * EVENTS, -1);
	reply = reply_of(s);
	s->batch = (PpBatch){.cxt = CurrentMemoryContext};
	if (!pp_stream_parse_read(reply, &s->batch, &error))
		pp_function_fail(reply);
	expect("entries of the group", s->batch.n, EVENTS);
	for (int i = 0; i < s->batch.n; i++)
	{
		pp_event_normalize(&s->batch.entries[i], NIL);
		s->batch.entries[i].hash = pp_event_hash(&s->batch.entries[i]);
	}
}

static char *
receive(Selftest *s)
{
	read_group(s, NULL);
	return psprintf("%d entries were delivered", s->batch.n);
}

static int64
count_rows(Selftest *s, const char *condition)
{
	PpStoreScope store;
	bool isnull;
	int64 n;

	pp_store_begin(&store, &s->ext);
	SPI_execute(psprintf("SELECT count(*) FROM %s WHERE %s", s->p.target, condition), false, 0);
	n = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	pp_store_end(&store);
	return n;
}

static char *
apply(Selftest *s)
{
	pp_function_run(s->a, &s->batch);
	CommandCounterIncrement();
	expect("rows", count_rows(s, "true"), EVENTS - 1);
	expect("rows with the values of the last event",
		   count_rows(s, psprintf("v = 'event-%d' AND n = %d", EVENTS - 1, EVENTS - 1)), 1);
	return psprintf("%d rows, the last one with the values of its last event", EVENTS - 1);
}

static char *
record(Selftest *s)
{
	PpStoreScope store;
	PpEntry **entries = palloc(s->batch.n * sizeof(PpEntry *));

	for (int i = 0; i < s->batch.n; i++)
		entries[i] = &s->batch.entries[i];
	s->a->ledger.epoch = 1;
	pp_store_begin(&store, &s->ext);
	pp_ledger_record(&s->a->ledger, entries, s->batch.n);
	pp_ledger_free_plans(&s->a->ledger);
	pp_store_end(&store);
	CommandCounterIncrement();
	return "the entries are on record as settled";
}

static char *
deliver_again(Selftest *s)
{
	PpId from = {0, 0};
	int epoch;

	read_group(s, &from);
	for (int i = 0; i < s->batch.n; i++)
		expect("entries known", pp_ledger_has(&s->ext, s->p.name, &s->batch.entries[i], &epoch), 1);
	return "delivered again they are known, and would not be applied twice";
}

static char *
acknowledge(Selftest *s)
{
	PpId ids[EVENTS];

	for (int i = 0; i < EVENTS; i++)
		ids[i] = s->batch.entries[i].id;
	pp_stream_send_ack(s->conn, s->p.stream, s->p.group, ids, EVENTS);
	expect("entries acknowledged", reply_of(s)->integer, EVENTS);
	expect("entries pending", pp_function_group(s->conn, &s->p).pending, 0);
	return "nothing is pending";
}

/* PostgreSQL's part is rolled back afterwards. */
static char *
clean_up(Selftest *s)
{
	pp_redis_send(s->conn, "DEL %s", s->p.stream);
	expect("streams deleted", reply_of(s)->integer, 1);
	return "stream and group are deleted, the table is rolled back";
}

static const struct
{
	const char *name;
	char *(*run)(Selftest *s);
} steps[] = {
	{"connect", connect},
	{"create", create},
	{"publish", publish},
	{"receive", receive},
	{"apply", apply},
	{"record", record},
	{"deliver_again", deliver_again},
	{"acknowledge", acknowledge},
	{"clean_up", clean_up},
};

/* Does all steps, and throws in the first one that fails. */
static void
run_steps(void *arg)
{
	Selftest *s = arg;

	for (int i = 0; i < (int) lengthof(steps); i++)
	{
		s->step = steps[i].name;
		CHECK_FOR_INTERRUPTS();
		if (pp_steady_is_due(s->end))
			ereport(ERROR, (errcode(ERRCODE_OPERATOR_INTERVENTION), errmsg("time is up")));
		emit(s, true, steps[i].run(s));
	}
}

/* What is left when a step failed, as far as the connection allows. */
static void
leave(Selftest *s)
{
	PpReply *reply;

	if (s->a != NULL)
		pp_function_apply_end(s->a);
	if (s->conn == NULL)
		return;
	pp_redis_send(s->conn, "DEL %s", s->p.stream);
	(void) pp_redis_receive(s->conn, &reply, 1000, PP_WAIT_REDIS_REPLY);
	pp_redis_close(s->conn);
}

/* postpipe_selftest(timeout): a row for each step; the first one that fails is the last. */
Datum
postpipe_selftest(PG_FUNCTION_ARGS)
{
	Selftest s = {.fcinfo = fcinfo, .step = "timeout"};
	PpEntryError *error;
	int64 ms = PG_ARGISNULL(0) ? 30000 : pp_interval_ms(PG_GETARG_INTERVAL_P(0));

	pp_require_preload();
	PreventCommandIfReadOnly("postpipe_selftest()");
	pp_function_refuse_deferred("postpipe_selftest()");
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&s.ext);
	if (ms <= 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("timeout must be greater than zero")));
	s.end = pp_steady_in(ms);
	s.p.name = psprintf("selftest %d", MyProcPid);
	s.p.owner = s.ext.owner;
	s.p.stream = psprintf("postpipe:selftest:%u:%d", MyDatabaseId, MyProcPid);
	s.p.group = "selftest";
	s.p.target = psprintf("%s.postpipe_selftest_%d", s.ext.schema_name, MyProcPid);
	s.p.on_conflict = "update";
	s.p.search_path = PP_SAFE_PATH;
	s.p.workers = 1;
	s.p.options = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
	PG_TRY();
	{
		error = pp_function_attempt(run_steps, &s);
		if (error != NULL)
			emit(&s, false,
				 error->hint ? psprintf("%s (%s)", error->message, error->hint) : error->message);
	}
	PG_FINALLY();
	{
		leave(&s);
	}
	PG_END_TRY();
	return (Datum) 0;
}
