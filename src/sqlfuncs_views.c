/*
 * sqlfuncs_views.c
 *		The functions under the views.
 *
 * Each copies what it needs out of shared memory under the lock and formats it outside.  A number
 * that is not known is NULL.
 */
#include "sqlfuncs.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#include "guc.h"
#include "stats.h"
#include "store.h"

PG_FUNCTION_INFO_V1(postpipe_stats_0_1);
PG_FUNCTION_INFO_V1(postpipe_workers_0_1);
PG_FUNCTION_INFO_V1(postpipe_pipelines_0_1);
PG_FUNCTION_INFO_V1(postpipe_audit_0_1);

#define MAX_COLUMNS 40
#define RATE_WINDOW_SECONDS 60

/* A row that is filled from left to right. */
typedef struct Row
{
	Datum		values[MAX_COLUMNS];
	bool		nulls[MAX_COLUMNS];
	int			n;
} Row;

static void
put(Row *row, Datum value, bool null)
{
	row->values[row->n] = value;
	row->nulls[row->n++] = null;
}

static void
put_text(Row *row, const char *value)
{
	bool		null = value == NULL || value[0] == '\0';

	put(row, null ? (Datum) 0 : CStringGetTextDatum(value), null);
}

static void
put_time(Row *row, TimestampTz at)
{
	put(row, TimestampTzGetDatum(at), at == 0);
}

static void
put_int8(Row *row, int64 value, bool null)
{
	put(row, Int64GetDatum(value), null);
}

static void
put_float8(Row *row, double value, bool null)
{
	put(row, Float8GetDatum(value), null);
}

static void
put_id(Row *row, PpId id, bool null)
{
	PpId	   *copy = palloc(sizeof(PpId));

	*copy = id;
	put(row, PointerGetDatum(copy), null);
}

static void
put_error(Row *row, const PpLastError *error)
{
	put_text(row, error->message);
	put_text(row, error->sqlstate);
	put_time(row, error->at);
}

static void
emit(FunctionCallInfo fcinfo, Row *row)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	Assert(row->n == rsinfo->setDesc->natts);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row->values, row->nulls);
}

static PpProc *
copy_proc(int i)
{
	PpProc	   *shared = &pp_shared->procs[i];
	PpProc	   *copy = palloc(sizeof(PpProc));
	bool		in_use;

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	LWLockAcquire(&shared->lock, LW_SHARED);
	memcpy(copy, shared, sizeof(PpProc));
	LWLockRelease(&shared->lock);
	in_use = copy->in_use;
	LWLockRelease(&pp_shared->lock);
	return in_use ? copy : NULL;
}

/* How bad is a state?  A pipeline is in the worst state of its workers. */
static int
severity(PpState state)
{
	static const int ranks[] = {
		[PP_STATE_IDLE] = 0,
		[PP_STATE_RUNNING] = 1,
		[PP_STATE_STARTING] = 2,
		[PP_STATE_STOPPED] = 3,
		[PP_STATE_PAUSED] = 3,
		[PP_STATE_DISARMED] = 3,
		[PP_STATE_WAITING] = 4,
		[PP_STATE_RETRYING] = 5,
		[PP_STATE_FENCED] = 6,
		[PP_STATE_FAILED] = 7,
	};

	return ranks[state];
}

/* The status of a pipeline of this database, and how many of its workers are up. */
static PpStatus
combine_status(const char *name, PpPipe *pipe, int *workers)
{
	PpStatus	status = {0};
	bool		first = true;

	*workers = 0;
	if (pipe == NULL)
	{
		const char *datname = get_database_name(MyDatabaseId);

		status.state = PP_STATE_STOPPED;
		if (pp_guc_lists_database(datname))
			(void) pp_status_set(&status, PP_STATE_STOPPED, "no_supervisor",
								 "no supervisor runs in this database yet");
		else
			(void) pp_status_set(&status, PP_STATE_STOPPED, "not_listed",
								 "this database is not listed in postpipe.databases");
		return status;
	}
	LWLockAcquire(&pipe->lock, LW_SHARED);
	status = pipe->status;
	LWLockRelease(&pipe->lock);
	for (int i = 1 + PP_MAX_DATABASES; i < pp_shared->num_procs; i++)
	{
		PpProc	   *proc = copy_proc(i);

		if (proc == NULL || proc->dboid != MyDatabaseId || strcmp(proc->pipeline, name) != 0)
			continue;
		*workers += proc->pid != 0;
		/* What the supervisor says counts while it is not just "running". */
		if (status.state == PP_STATE_RUNNING && status.reason_code[0] == '\0')
		{
			status = proc->status;
			first = false;
		}
		else if (!first && severity(proc->status.state) > severity(status.state))
			status = proc->status;
	}
	/* Wanted, and no worker there: it is between two lives. */
	if (first && status.state == PP_STATE_RUNNING && status.reason_code[0] == '\0')
		status.state = PP_STATE_STARTING;
	return status;
}

/* The state of a pipeline of this database; *pipe, if wanted, becomes its slot or NULL. */
PpState
pp_pipeline_status(const char *name, PpPipe **pipe)
{
	PpPipe	   *found = pp_pipe_find(MyDatabaseId, name);
	int			workers;

	if (pipe != NULL)
		*pipe = found;
	return combine_status(name, found, &workers).state;
}

/* Settled entries a second over the last minute; false when there are no two samples yet. */
static bool
entries_per_second(const PpPipe *pipe, uint64 settled, double *rate)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int back = pipe->sample_count; back > 0; back--)
	{
		const PpRateSample *s = &pipe->samples[(pipe->sample_next - back + 2 * PP_RATE_SAMPLES) %
											   PP_RATE_SAMPLES];
		double		seconds = (double) (now - s->at) / USECS_PER_SEC;

		if (seconds > RATE_WINDOW_SECONDS && back > 1)
			continue;
		if (seconds < 1)
			return false;
		*rate = (double) (settled - s->settled) / seconds;
		return true;
	}
	return false;
}

/* Dead letters of a pipeline: their number and the oldest. */
static void
put_dead_letters(Row *row, const PpExtension *ext, const char *pipeline)
{
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(pipeline)};
	Datum		count = 0;
	Datum		oldest = 0;
	bool		null = true;
	bool		isnull;

	pp_store_begin(ext);
	SPI_execute_with_args(psprintf("SELECT count(*), min(first_failed_at) "
								   "FROM %s.postpipe_dead_letter WHERE pipeline = $1",
								   ext->schema_name), 1, types, values, NULL, true, 0);
	count = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	count = Int64GetDatum(DatumGetInt64(count));
	oldest = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &null);
	pp_store_end();
	put(row, count, false);
	put(row, oldest, null);
}

static void
put_stats(Row *row, const PpExtension *ext, const PpPipeline *p)
{
	PpPipe	   *shared = pp_pipe_find(MyDatabaseId, p->name);
	PpPipe	   *pipe = palloc0(sizeof(PpPipe));
	uint64		counts[PP_COUNT_NUM] = {0};
	bool		none = shared == NULL;
	bool		known;
	int			workers;
	PpStatus	status = combine_status(p->name, shared, &workers);
	PpMeasured *m = &pipe->measured;
	uint64		settled = 0;
	double		rate = 0;

	if (!none)
	{
		LWLockAcquire(&shared->lock, LW_SHARED);
		memcpy(pipe, shared, sizeof(PpPipe));
		LWLockRelease(&shared->lock);
		for (int i = 0; i < PP_COUNT_NUM; i++)
			counts[i] = pg_atomic_read_u64(&shared->counters[i]);
		settled = pp_pipe_settled(shared);
	}
	known = m->at != 0;
	put_text(row, p->name);
	put_text(row, pp_state_name(status.state));
	put_text(row, status.reason_code);
	put_text(row, status.reason);
	put_text(row, p->stream);
	put_text(row, p->group);
	put(row, Int32GetDatum(workers), false);
	put(row, Int32GetDatum(pipe->workers_wanted), none);
	for (int i = PP_COUNT_READ; i <= PP_COUNT_BATCHES; i++)
		put_int8(row, (int64) counts[i], none);
	put_int8(row, m->pending, !known || m->pending < 0);
	put_int8(row, m->lag, !known || m->lag < 0);
	put_float8(row, m->lag_seconds, !known || m->lag_seconds < 0);
	put_float8(row, m->oldest_pending_seconds, !known || m->oldest_pending_seconds < 0);
	put_dead_letters(row, ext, p->name);
	known = !none && entries_per_second(pipe, settled, &rate);
	put_float8(row, rate, !known);
	put_float8(row, rate > 0 ? m->lag / rate : 0, !known || m->at == 0 || m->lag < 0 ||
			   (rate <= 0 && m->lag > 0));
	put_id(row, pipe->last_id, pp_id_is_zero(pipe->last_id));
	put_time(row, pipe->last_read_at);
	put_time(row, pipe->last_applied_at);
	put_time(row, pipe->last_ack_at);
	put_int8(row, (int64) counts[PP_COUNT_RECONNECTS], none);
	put_int8(row, (int64) counts[PP_COUNT_RESTARTS], none);
	put_error(row, &pipe->last_error);
	put_time(row, m->at);
	put_time(row, pipe->since);
}

/* postpipe_stats: one row per pipeline of this database. */
Datum
postpipe_stats_0_1(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	ListCell   *lc;

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	foreach(lc, pp_pipeline_list(&ext))
	{
		Row			row = {0};

		put_stats(&row, &ext, lfirst(lc));
		emit(fcinfo, &row);
	}
	return (Datum) 0;
}

static void
put_worker(Row *row, const PpProc *proc)
{
	static const char *const kinds[] = {
		[PP_PROC_LAUNCHER] = "launcher",
		[PP_PROC_SUPERVISOR] = "supervisor",
		[PP_PROC_WORKER] = "worker",
	};
	const PpProcInfo *info = &proc->info;
	bool		is_worker = proc->kind == PP_PROC_WORKER;
	bool		in_hand = info->batch_started_at != 0;
	PpPipe	   *pipe = is_worker ? &pp_shared->pipes[proc->pipe_no] : NULL;

	put(row, Int32GetDatum(proc->pid), proc->pid == 0);
	put_text(row, proc->datname);
	put_text(row, kinds[proc->kind]);
	put_text(row, proc->pipeline);
	put(row, Int32GetDatum(proc->worker), !is_worker);
	put_text(row, info->owner);
	put_text(row, pp_state_name(proc->status.state));
	put_text(row, proc->status.reason_code);
	put_text(row, proc->status.reason);
	put_text(row, info->consumer);
	put_time(row, info->backend_start);
	put_time(row, proc->status.changed_at);
	put_time(row, info->last_read_at);
	put_time(row, info->last_commit_at);
	put_time(row, info->last_ack_at);
	put(row, Int32GetDatum(info->batch_entries), !in_hand);
	put_int8(row, info->batch_bytes, !in_hand);
	put_id(row, info->batch_first_id, !in_hand);
	put_id(row, info->batch_last_id, !in_hand);
	put_time(row, info->batch_started_at);
	put_text(row, info->redis);
	put_text(row, info->redis_role);
	put_text(row, info->redis_version);
	put_int8(row, info->redis_client_id, info->redis_client_id == 0);
	put_int8(row, pipe ? (int64) pg_atomic_read_u64(&pipe->counters[PP_COUNT_RECONNECTS]) : 0,
			 pipe == NULL);
	put_int8(row, pipe ? (int64) pg_atomic_read_u64(&pipe->counters[PP_COUNT_RESTARTS]) : 0,
			 pipe == NULL);
	put_time(row, info->next_attempt_at);
	put_int8(row, info->memory_bytes, info->memory_bytes == 0);
	put_error(row, &info->last_error);
}

/* postpipe_workers: our processes in all databases. */
Datum
postpipe_workers_0_1(PG_FUNCTION_ARGS)
{
	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < pp_shared->num_procs; i++)
	{
		PpProc	   *proc = copy_proc(i);
		Row			row = {0};

		if (proc == NULL)
			continue;
		put_worker(&row, proc);
		emit(fcinfo, &row);
	}
	return (Datum) 0;
}

/* The statement that runs; NULL while the target is not there or does not fit. */
static char *
current_statement(const PpExtension *ext, const PpPipeline *p)
{
	PpPipeline	adapted = *p;
	Relation	rel;
	char	   *sql;

	if (p->statement != NULL)
		return p->statement;
	rel = pp_target_open(p, AccessShareLock);
	if (rel == NULL)
		return NULL;
	if (strcmp(p->name, PP_POSTS_PIPELINE) == 0)
		pp_posts_adapt(&adapted, rel);
	sql = pp_generate_statement(ext, &adapted, rel, NULL);
	table_close(rel, NoLock);
	return sql;
}

static void
put_text_array(Row *row, List *strings)
{
	Datum	   *elems = palloc(Max(list_length(strings), 1) * sizeof(Datum));
	int			n = 0;
	ListCell   *lc;

	foreach(lc, strings)
		elems[n++] = CStringGetTextDatum((char *) lfirst(lc));
	put(row, PointerGetDatum(construct_array(elems, n, TEXTOID, -1, false, TYPALIGN_INT)), n == 0);
}

/* postpipe_pipelines: the definitions. */
Datum
postpipe_pipelines_0_1(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	ListCell   *lc;

	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	foreach(lc, pp_pipeline_list(&ext))
	{
		PpPipeline *p = lfirst(lc);
		Row			row = {0};

		put_text(&row, p->name);
		put_text(&row, GetUserNameFromId(p->owner, true));
		put_text(&row, p->stream);
		put_text(&row, p->group);
		put_text(&row, p->redis);
		put_text(&row, p->target);
		put_text_array(&row, p->key);
		put_text(&row, p->on_conflict);
		put_text(&row, p->newer_by);
		put(&row, PointerGetDatum(p->columns), p->columns == NULL);
		put_text_array(&row, p->event_types);
		put_text(&row, current_statement(&ext, p));
		put(&row, BoolGetDatum(p->statement == NULL), false);
		put_text(&row, p->search_path);
		put(&row, Int32GetDatum(p->workers), false);
		put(&row, BoolGetDatum(p->enabled), false);
		put_text(&row, p->enabled_reason);
		put(&row, JsonbPGetDatum(p->options), false);
		put_time(&row, p->created_at);
		put_time(&row, p->altered_at);
		emit(fcinfo, &row);
	}
	return (Datum) 0;
}

/* What the tables say, a row per pipeline and epoch. */
static const char audit_query[] =
	"SELECT e.pipeline, e.epoch, e.since_id, l.last_id, coalesce(l.applied, 0), "
	"coalesce(l.filtered, 0), coalesce(d.retrying, 0), coalesce(d.dead, 0), "
	"coalesce(l.lost, 0), e.base_added, "
	"e.epoch = max(e.epoch) OVER (PARTITION BY e.pipeline) "
	"FROM %1$s.postpipe_epoch e "
	"LEFT JOIN (SELECT pipeline, epoch, %1$s.max(last_id) AS last_id, sum(applied) AS applied, "
	"sum(filtered) AS filtered, sum(lost) AS lost FROM %1$s.postpipe_ledger "
	"GROUP BY pipeline, epoch) l USING (pipeline, epoch) "
	"LEFT JOIN (SELECT pipeline, epoch, count(*) FILTER (WHERE state = 'retrying') AS retrying, "
	"count(*) FILTER (WHERE state = 'dead') AS dead FROM %1$s.postpipe_dead_letter "
	"GROUP BY pipeline, epoch) d USING (pipeline, epoch) "
	"ORDER BY e.pipeline, e.epoch";

/* Adds what was measured in Redis to a row of the tables, and the balance where it is provable. */
static void
put_balance(Row *row, HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	bool		no_base;
	int64		n[10];
	char	   *name = TextDatumGetCString(SPI_getbinval(tuple, desc, 1, &isnull));
	int64		base = DatumGetInt64(SPI_getbinval(tuple, desc, 10, &no_base));
	bool		current = DatumGetBool(SPI_getbinval(tuple, desc, 11, &isnull));
	PpPipe	   *pipe = pp_pipe_find(MyDatabaseId, name);
	PpMeasured	m = {0};
	bool		measured;
	const char *reason = NULL;
	int64		sum = 0;

	for (int i = 5; i <= 9; i++)
		sum += n[i] = DatumGetInt64(SPI_getbinval(tuple, desc, i, &isnull));
	if (pipe != NULL && current)
	{
		LWLockAcquire(&pipe->lock, LW_SHARED);
		m = pipe->measured;
		LWLockRelease(&pipe->lock);
	}
	measured = m.at != 0 && m.pending >= 0 && m.lag >= 0;
	if (!current)
		reason = "an epoch that has ended is not measured any more";
	else if (!measured || m.added < 0)
		reason = "Redis does not tell the numbers that are needed, or has not been asked yet";
	else if (no_base)
		reason = "how many entries the epoch began with could not be determined";
	else if (!m.still || m.settled != pp_pipe_settled(pipe))
		reason = "measured while entries were moving";

	put_int8(row, m.added - base, !measured || m.added < 0 || no_base);
	for (int i = 5; i <= 8; i++)
		put_int8(row, n[i], false);
	put_int8(row, 0, false);		/* discarded */
	put_int8(row, n[9], false);
	put_int8(row, m.pending, !measured);
	put_int8(row, m.lag, !measured);
	put_int8(row, m.added - base - sum - m.pending - m.lag, reason != NULL);
	put_int8(row, pipe ? (int64) pg_atomic_read_u64(&pipe->counters[PP_COUNT_DEDUPLICATED]) : 0,
			 pipe == NULL || !current);
	put_int8(row, 0, false);		/* ingested */
	put(row, BoolGetDatum(reason == NULL), false);
	put_text(row, reason);
	put_time(row, m.at);
}

/* postpipe_audit: where every entry is, a row per pipeline and epoch. */
Datum
postpipe_audit_0_1(PG_FUNCTION_ARGS)
{
	PpExtension ext;

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	pp_store_begin(&ext);
	SPI_execute(psprintf(audit_query, ext.schema_name), true, 0);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		Row			row = {0};

		for (int col = 1; col <= 4; col++)
		{
			bool		isnull;
			Datum		value = SPI_getbinval(tuple, desc, col, &isnull);

			put(&row, value, isnull);
			if (col == 3)
			{
				/* sealed_id: nothing is sealed yet */
				put(&row, (Datum) 0, true);
			}
		}
		put_balance(&row, tuple, desc);
		emit(fcinfo, &row);
	}
	pp_store_end();
	return (Datum) 0;
}
