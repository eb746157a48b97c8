/*
 * sqlfuncs_stats.c
 *		The functions under postpipe_stats and postpipe_workers.
 *
 * Each copies what it needs out of shared memory under the lock and formats it outside.  A number
 * that is not known is NULL.
 */
#include "sqlfuncs.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "events.h"
#include "guc.h"
#include "stats.h"
#include "store.h"

PG_FUNCTION_INFO_V1(postpipe_stats_0_1);
PG_FUNCTION_INFO_V1(postpipe_workers_0_1);
PG_FUNCTION_INFO_V1(postpipe_events_0_1);
PG_FUNCTION_INFO_V1(postpipe_reset_stats);

#define RATE_WINDOW_SECONDS 60

static void
put_error(PpRow *row, const PpLastError *error)
{
	pp_row_text(row, error->message);
	pp_row_text(row, error->sqlstate);
	pp_row_time(row, error->at);
}

/* Copies a slot. False: it is not in use. */
static bool
copy_proc(int i, PpProc *copy)
{
	PpProc *shared = &pp_shared->procs[i];

	LWLockAcquire(&pp_shared->lock, LW_SHARED);
	LWLockAcquire(&shared->lock, LW_SHARED);
	memcpy(copy, shared, sizeof(PpProc));
	LWLockRelease(&shared->lock);
	LWLockRelease(&pp_shared->lock);
	return copy->in_use;
}

/* How bad is a state?  A pipeline is in the worst state of its workers. */
static int
severity(PpState state)
{
	static const int ranks[] = {
		[PP_STATE_IDLE] = 0,    [PP_STATE_RUNNING] = 1,  [PP_STATE_STARTING] = 2,
		[PP_STATE_STOPPED] = 3, [PP_STATE_PAUSED] = 3,   [PP_STATE_DISARMED] = 3,
		[PP_STATE_WAITING] = 4, [PP_STATE_RETRYING] = 5, [PP_STATE_FENCED] = 6,
		[PP_STATE_FAILED] = 7,
	};

	return ranks[state];
}

/* Why a pipeline of this database has no slot: no supervisor has seen it, or could have. */
static void
explain_no_slot(PpStatus *status)
{
	PpProc launcher;

	(void) copy_proc(0, &launcher);
	if (RecoveryInProgress())
		(void) pp_status_set(status, PP_STATE_WAITING, "standby", "this server is a standby");
	else if (!pp_guc_lists_database(get_database_name(MyDatabaseId)))
		(void) pp_status_set(status, PP_STATE_STOPPED, "not_listed",
							 "this database is not listed in postpipe.databases");
	else if (pp_pipe_count(InvalidOid) >= PP_MAX_PIPELINES)
		(void) pp_status_set(status, PP_STATE_WAITING, PP_PIPES_FULL_CODE, PP_PIPES_FULL);
	else if (launcher.status.state == PP_STATE_WAITING)
		*status = launcher.status;
	else if (launcher.pid == 0)
		(void) pp_status_set(status, PP_STATE_STOPPED, "no_launcher",
							 "the launcher does not run; if it stays so, raise "
							 "max_worker_processes and restart the server");
	else if (pp_supervisor_has_looked(MyDatabaseId))
		status->state = PP_STATE_STARTING;
	else
		(void) pp_status_set(status, PP_STATE_STOPPED, "no_supervisor",
							 "no supervisor runs in this database yet");
}

/* The status of a pipeline of this database: the worst one of its workers; and how many of these are up. */
static PpStatus
combine_status(const char *name, PpPipe *pipe, int *workers)
{
	PpStatus status = {0};
	bool ask_workers;
	bool first = true;

	*workers = 0;
	if (pipe == NULL)
	{
		explain_no_slot(&status);
		return status;
	}
	LWLockAcquire(&pipe->lock, LW_SHARED);
	status = pipe->status;
	LWLockRelease(&pipe->lock);
	/* What the supervisor says counts while it is not just "running". */
	ask_workers = status.state == PP_STATE_RUNNING && status.reason_code[0] == '\0';
	for (int i = 1 + PP_MAX_DATABASES; i < pp_shared->num_procs; i++)
	{
		PpProc proc;

		if (!copy_proc(i, &proc) || proc.dboid != MyDatabaseId || strcmp(proc.pipeline, name) != 0)
			continue;
		*workers += proc.pid != 0;
		if (ask_workers && (first || severity(proc.status.state) > severity(status.state)))
		{
			status = proc.status;
			first = false;
		}
	}
	/* Wanted, and no worker there: it is between two lives. */
	if (ask_workers && first)
		status.state = PP_STATE_STARTING;
	return status;
}

/* The state of a pipeline of this database; *pipe, if wanted, becomes its slot or NULL. */
PpState
pp_pipeline_status(const char *name, PpPipe **pipe)
{
	PpPipe *found = pp_pipe_find(MyDatabaseId, name);
	int workers;

	if (pipe != NULL)
		*pipe = found;
	return combine_status(name, found, &workers).state;
}

/* Settled entries a second over the last minute; false when there are no two samples yet. */
static bool
entries_per_second(const PpPipe *pipe, uint64 settled, double *rate)
{
	for (int back = pipe->sample_count; back > 0; back--)
	{
		const PpRateSample *s =
			&pipe->samples[(pipe->sample_next - back + 2 * PP_RATE_SAMPLES) % PP_RATE_SAMPLES];
		double seconds = pp_steady_seconds(s->at);

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
put_dead_letters(PpRow *row, const PpExtension *ext, const char *pipeline)
{
	PpStoreScope store;
	Oid types[] = {TEXTOID};
	Datum values[] = {CStringGetTextDatum(pipeline)};
	Datum oldest;
	int64 count;
	bool null;

	pp_store_begin(&store, ext);
	SPI_execute_with_args(psprintf("SELECT count(*), min(first_failed_at) "
								   "FROM %s.postpipe_dead_letter WHERE pipeline = $1",
								   ext->schema_name),
						  1, types, values, NULL, true, 0);
	count = pp_store_get_number(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	oldest = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &null);
	pp_store_end(&store);
	pp_row_int8(row, count, false);
	pp_row_put(row, oldest, null);
}

static void
put_stats(PpRow *row, const PpExtension *ext, const PpPipeline *p)
{
	PpPipe *shared = pp_pipe_find(MyDatabaseId, p->name);
	PpPipe *pipe = palloc0(sizeof(PpPipe));
	int64 counts[PP_COUNT_NUM] = {0};
	bool none = shared == NULL;
	bool known;
	int workers;
	PpStatus status = combine_status(p->name, shared, &workers);
	PpMeasured *m = &pipe->measured;
	uint64 settled = 0;
	double rate = 0;

	if (!none)
	{
		LWLockAcquire(&shared->lock, LW_SHARED);
		memcpy(pipe, shared, sizeof(PpPipe));
		LWLockRelease(&shared->lock);
		for (int i = 0; i < PP_COUNT_NUM; i++)
			counts[i] = pp_pipe_counter(shared, i);
		settled = pp_pipe_settled(shared);
	}
	known = m->at != 0;
	pp_row_text(row, p->name);
	pp_row_text(row, pp_state_name(status.state));
	pp_row_text(row, status.reason_code);
	pp_row_text(row, status.reason);
	pp_row_text(row, p->stream);
	pp_row_text(row, p->group);
	pp_row_put(row, Int32GetDatum(workers), false);
	pp_row_put(row, Int32GetDatum(pipe->workers_wanted), none);
	for (int i = PP_COUNT_READ; i <= PP_COUNT_BATCHES; i++)
		pp_row_int8(row, counts[i], none);
	pp_row_int8(row, m->pending, !known || m->pending < 0);
	pp_row_int8(row, m->lag, !known || m->lag < 0);
	pp_row_float8(row, m->lag_seconds, !known || m->lag_seconds < 0);
	pp_row_float8(row, pp_id_age(m->oldest_pending, m->at),
				  !known || pp_id_is_zero(m->oldest_pending));
	put_dead_letters(row, ext, p->name);
	known = !none && entries_per_second(pipe, settled, &rate);
	pp_row_float8(row, rate, !known);
	pp_row_float8(row, rate > 0 ? m->lag / rate : 0,
				  !known || m->at == 0 || m->lag < 0 || (rate <= 0 && m->lag > 0));
	pp_row_id(row, pipe->last_id, pp_id_is_zero(pipe->last_id));
	pp_row_time(row, pipe->last_read_at);
	pp_row_time(row, pipe->last_applied_at);
	pp_row_time(row, pipe->last_ack_at);
	pp_row_int8(row, counts[PP_COUNT_RECONNECTS], none);
	pp_row_int8(row, counts[PP_COUNT_RESTARTS], none);
	put_error(row, &pipe->last_error);
	pp_row_time(row, m->at);
	pp_row_time(row, pipe->since);
}

/* postpipe_stats: one row per pipeline of this database. */
Datum
postpipe_stats_0_1(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	ListCell *lc;

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	foreach (lc, pp_pipeline_list(&ext))
	{
		PpRow row = {0};

		put_stats(&row, &ext, lfirst(lc));
		pp_row_emit(fcinfo, &row);
	}
	return (Datum) 0;
}

static void
put_worker(PpRow *row, const PpProc *proc)
{
	static const char *const kinds[] = {
		[PP_PROC_LAUNCHER] = "launcher",
		[PP_PROC_SUPERVISOR] = "supervisor",
		[PP_PROC_WORKER] = "worker",
	};
	const PpProcInfo *info = &proc->info;
	bool is_worker = proc->kind == PP_PROC_WORKER;
	bool in_hand = info->batch_started_at != 0;
	PpPipe *pipe = is_worker ? &pp_shared->pipes[proc->pipe_no] : NULL;

	pp_row_put(row, Int32GetDatum(proc->pid), proc->pid == 0);
	pp_row_text(row, proc->datname);
	pp_row_text(row, kinds[proc->kind]);
	pp_row_text(row, proc->pipeline);
	pp_row_put(row, Int32GetDatum(proc->worker), !is_worker);
	pp_row_text(row, info->owner);
	pp_row_text(row, pp_state_name(proc->status.state));
	pp_row_text(row, proc->status.reason_code);
	pp_row_text(row, proc->status.reason);
	pp_row_text(row, info->consumer);
	pp_row_time(row, info->backend_start);
	pp_row_time(row, proc->status.changed_at);
	pp_row_time(row, info->last_read_at);
	pp_row_time(row, info->last_commit_at);
	pp_row_time(row, info->last_ack_at);
	pp_row_put(row, Int32GetDatum(info->batch_entries), !in_hand);
	pp_row_int8(row, info->batch_bytes, !in_hand);
	pp_row_id(row, info->batch_first_id, !in_hand);
	pp_row_id(row, info->batch_last_id, !in_hand);
	pp_row_time(row, info->batch_started_at);
	pp_row_text(row, info->redis);
	pp_row_text(row, info->redis_role);
	pp_row_text(row, info->redis_version);
	pp_row_int8(row, info->redis_client_id, info->redis_client_id == 0);
	pp_row_int8(row, pipe ? pp_pipe_counter(pipe, PP_COUNT_RECONNECTS) : 0, pipe == NULL);
	pp_row_int8(row, pipe ? pp_pipe_counter(pipe, PP_COUNT_RESTARTS) : 0, pipe == NULL);
	pp_row_time(row, info->next_attempt_at);
	pp_row_int8(row, info->memory_bytes, info->memory_bytes == 0);
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
		PpProc proc;
		PpRow row = {0};

		if (!copy_proc(i, &proc))
			continue;
		put_worker(&row, &proc);
		pp_row_emit(fcinfo, &row);
	}
	return (Datum) 0;
}

/* postpipe_events: the last changes of state and errors, of this database and of the launcher. */
Datum
postpipe_events_0_1(PG_FUNCTION_ARGS)
{
	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < PP_EVENTS; i++)
	{
		PpEvent event;
		PpRow row = {0};

		if (!pp_event_copy(i, &event))
			continue;
		pp_row_time(&row, event.at);
		pp_row_text(&row, event.pipeline);
		pp_row_put(&row, Int32GetDatum(event.pid), false);
		pp_row_text(&row, event.is_error ? "ERROR" : "LOG");
		pp_row_text(&row, event.is_error ? NULL : pp_state_name(event.state));
		pp_row_text(&row, event.reason_code);
		pp_row_text(&row, event.sqlstate);
		pp_row_text(&row, event.message);
		pp_row_text(&row, event.hint);
		pp_row_int8(&row, event.repeated, false);
		pp_row_emit(fcinfo, &row);
	}
	return (Datum) 0;
}

/* postpipe_reset_stats(pipeline): of one pipeline, or of all that the caller may manage. */
Datum
postpipe_reset_stats(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	List *pipelines;
	ListCell *lc;

	pp_require_preload();
	pp_require_extension(&ext);
	if (PG_ARGISNULL(0))
		pipelines = pp_pipeline_list(&ext);
	else
		pipelines = list_make1(pp_require_pipeline(&ext, pp_text_arg(fcinfo, 0)));
	foreach (lc, pipelines)
	{
		const PpPipeline *p = lfirst(lc);
		PpPipe *pipe = pp_pipe_find(MyDatabaseId, p->name);

		if (pipe != NULL && has_privs_of_role(GetUserId(), p->owner))
			pp_pipe_reset(pipe);
	}
	PG_RETURN_VOID();
}
