/*
 * stats.c
 *		What this process tells the others about itself: its slot, and its pipeline's numbers.
 *
 * One log line for each change of state; between running and idle a worker goes to and fro with
 * every entry, so that is no change worth a line (news.c has what else is none).
 */
#include "stats.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/elog.h"
#include "utils/memutils.h"

#include "events.h"
#include "news.h"

#define MS_OF_2018 UINT64CONST(1514764800000)

/* Copies a string into a fixed buffer, cut at a character of the database's encoding. */
void
pp_clip(char *dst, const char *src, size_t size)
{
	size_t len = strlen(src);

	if (len >= size)
		len = pg_mbcliplen(src, (int) len, (int) size - 1);
	memcpy(dst, src, len);
	dst[len] = '\0';
}

/* Sets a status, under the lock that the caller holds; returns true if the state or code changed. */
bool
pp_status_set(PpStatus *status, PpState state, const char *code, const char *reason)
{
	bool changed = status->state != state || strcmp(status->reason_code, code) != 0;

	pp_clip(status->reason_code, code, sizeof(status->reason_code));
	pp_clip(status->reason, reason, sizeof(status->reason));
	status->state = state;
	if (changed)
		status->changed_at = GetCurrentTimestamp();
	return changed;
}

static bool
is_well(PpState state)
{
	return state == PP_STATE_RUNNING || state == PP_STATE_IDLE;
}

static void
log_state(PpState state, const char *reason, const char *hint)
{
	const PpProc *proc = pp_my_proc;
	char who[2 * NAMEDATALEN];

	if (proc->kind == PP_PROC_WORKER)
		snprintf(who, sizeof(who), "pipeline \"%s\", worker %d", proc->pipeline, proc->worker);
	else if (proc->kind == PP_PROC_SUPERVISOR)
		snprintf(who, sizeof(who), "supervisor of database \"%s\"", proc->datname);
	else
		strlcpy(who, "launcher", sizeof(who));
	ereport(LOG, (errmsg("postpipe %s: %s%s%s", who, pp_state_name(state), reason[0] ? ": " : "",
						 reason),
				  hint ? errhint("%s", hint) : 0));
}

/*
 * pp_report_state
 *		This process is in this state now, for this reason (a stable code and words; both may be
 *		empty).  Logs a change; wakes who waits for one.
 */
void
pp_report_state(PpState state, const char *code, const char *reason, const char *hint)
{
	pp_report_state_as(state, code, reason, reason, hint);
}

/* The same, with other words for the log, which has other readers than the views. */
void
pp_report_state_as(PpState state, const char *code, const char *reason, const char *logged,
				   const char *hint)
{
	PpProc *proc = pp_my_proc;
	PpState before;
	bool changed;

	LWLockAcquire(&proc->lock, LW_EXCLUSIVE);
	before = proc->status.state;
	changed = pp_status_set(&proc->status, state, code, reason);
	if (is_well(state))
		proc->info.next_attempt_at = 0;
	LWLockRelease(&proc->lock);
	if (!changed)
	{
		if (pp_news_overdue())
			log_state(state, logged, hint);
		return;
	}
	if (!(is_well(before) && is_well(state)))
	{
		pp_event_state(proc->pipeline, state, code, reason, hint);
		if (pp_news_state(is_well(state), code))
			log_state(state, logged, hint);
	}
	ConditionVariableBroadcast(&pp_shared->state_cv);
}

/* This worker has started: its slot says so from the moment in which it was reserved. */
void
pp_report_start(void)
{
	pp_event_state(pp_my_proc->pipeline, PP_STATE_STARTING, "", "", NULL);
	log_state(PP_STATE_STARTING, "", NULL);
}

static void
set_error(PpLastError *error, int sqlstate, const char *message)
{
	pp_clip(error->message, message, sizeof(error->message));
	strlcpy(error->sqlstate, unpack_sql_state(sqlstate), sizeof(error->sqlstate));
	error->at = GetCurrentTimestamp();
}

/* Remembers the last error, for this process and its pipeline. */
void
pp_report_error(PpPipe *pipe, int sqlstate, const char *message)
{
	pp_event_error(pp_my_proc->pipeline, sqlstate, message);
	LWLockAcquire(&pp_my_proc->lock, LW_EXCLUSIVE);
	set_error(&pp_my_proc->info.last_error, sqlstate, message);
	LWLockRelease(&pp_my_proc->lock);
	if (pipe == NULL)
		return;
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	set_error(&pipe->last_error, sqlstate, message);
	LWLockRelease(&pipe->lock);
}

/* After a failure: the next attempt comes in so many ms.  For the views; nobody waits for that moment. */
void
pp_report_next_attempt(int ms)
{
	TimestampTz at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);

	LWLockAcquire(&pp_my_proc->lock, LW_EXCLUSIVE);
	pp_my_proc->info.next_attempt_at = at;
	LWLockRelease(&pp_my_proc->lock);
}

/* The batch in hand; NULL: none any more, it is committed. */
void
pp_report_batch(const PpBatch *batch)
{
	PpProcInfo *info = &pp_my_proc->info;

	LWLockAcquire(&pp_my_proc->lock, LW_EXCLUSIVE);
	if (batch != NULL)
	{
		info->batch_started_at = GetCurrentTimestamp();
		info->batch_entries = batch->n;
		info->batch_bytes = (int64) batch->bytes;
		info->batch_first_id = batch->entries[0].id;
		info->batch_last_id = batch->entries[batch->n - 1].id;
	}
	else
	{
		info->batch_started_at = 0;
		info->last_commit_at = GetCurrentTimestamp();
	}
	LWLockRelease(&pp_my_proc->lock);
}

/* The connection, after log-in. */
void
pp_report_redis(const char *url, const char *role, const char *version, int64 client_id)
{
	PpProcInfo *info = &pp_my_proc->info;

	LWLockAcquire(&pp_my_proc->lock, LW_EXCLUSIVE);
	pp_clip(info->redis, url, sizeof(info->redis));
	pp_clip(info->redis_role, role, sizeof(info->redis_role));
	pp_clip(info->redis_version, version, sizeof(info->redis_version));
	info->redis_client_id = client_id;
	LWLockRelease(&pp_my_proc->lock);
}

/* The consumer, and the role that the statement runs as; NULL: it was dropped since. */
void
pp_report_consumer(const char *consumer, const char *owner)
{
	LWLockAcquire(&pp_my_proc->lock, LW_EXCLUSIVE);
	strlcpy(pp_my_proc->info.consumer, consumer, sizeof(pp_my_proc->info.consumer));
	strlcpy(pp_my_proc->info.owner, owner ? owner : "", sizeof(pp_my_proc->info.owner));
	LWLockRelease(&pp_my_proc->lock);
}

/* What this process has allocated; walks all contexts, so not for every batch. */
void
pp_report_memory(void)
{
	int64 bytes = (int64) MemoryContextMemAllocated(TopMemoryContext, true);

	LWLockAcquire(&pp_my_proc->lock, LW_EXCLUSIVE);
	pp_my_proc->info.memory_bytes = bytes;
	LWLockRelease(&pp_my_proc->lock);
}

void
pp_count(PpPipe *pipe, PpCounter counter, uint64 n)
{
	if (n > 0)
		pg_atomic_fetch_add_u64(&pipe->counters[counter], n);
}

/* What a counter has counted since the statistics were reset. */
int64
pp_pipe_counter(PpPipe *pipe, PpCounter counter)
{
	uint64 base;

	LWLockAcquire(&pipe->lock, LW_SHARED);
	base = pipe->base[counter];
	LWLockRelease(&pipe->lock);
	return (int64) (pg_atomic_read_u64(&pipe->counters[counter]) - base);
}

/*
 * The statistics begin anew.  The counters themselves go on: what is compared with an earlier value of one
 * must not see it fall.
 */
void
pp_pipe_reset(PpPipe *pipe)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	for (int i = 0; i < PP_COUNT_NUM; i++)
		pipe->base[i] = pg_atomic_read_u64(&pipe->counters[i]);
	memset(&pipe->histograms, 0, sizeof(pipe->histograms));
	pipe->num_errors = 0;
	memset(pipe->errors, 0, sizeof(pipe->errors));
	pipe->since = GetCurrentTimestamp();
	LWLockRelease(&pipe->lock);
}

/*
 * Entries that have left the stream since the counters began.  One that is tried again counts once
 * more when it comes to its end.
 */
uint64
pp_pipe_settled(PpPipe *pipe)
{
	return pg_atomic_read_u64(&pipe->counters[PP_COUNT_APPLIED]) +
		   pg_atomic_read_u64(&pipe->counters[PP_COUNT_FILTERED]) +
		   pg_atomic_read_u64(&pipe->counters[PP_COUNT_DEAD]) +
		   pg_atomic_read_u64(&pipe->counters[PP_COUNT_RETRIED]) +
		   pg_atomic_read_u64(&pipe->counters[PP_COUNT_LOST]);
}

/*
 * Redis has answered a read, be it with nothing: who watches an idle pipeline sees by that that it hears from
 * Redis still.
 */
void
pp_pipe_read(PpPipe *pipe, const PpBatch *batch)
{
	TimestampTz now = GetCurrentTimestamp();

	pp_count(pipe, PP_COUNT_READ, batch->n);
	pp_count(pipe, PP_COUNT_BYTES, batch->bytes);
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->last_read_at = now;
	LWLockRelease(&pipe->lock);
	LWLockAcquire(&pp_my_proc->lock, LW_EXCLUSIVE);
	pp_my_proc->info.last_read_at = now;
	LWLockRelease(&pp_my_proc->lock);
}

/* Has worker 1 to read its own pending entries again?  Somebody has given it more. */
bool
pp_pipe_wants_rescan(const PpPipe *pipe)
{
	/* No lock is needed: whoever misses it sees it at the next turn. */
	return pipe->rescan;
}

void
pp_pipe_set_rescan(PpPipe *pipe, bool wanted)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->rescan = wanted;
	LWLockRelease(&pipe->lock);
}

/* Is the group another pipeline's, and has this one let go of all that it held? */
bool
pp_pipe_is_fenced(PpPipe *pipe)
{
	bool fenced;

	LWLockAcquire(&pipe->lock, LW_SHARED);
	fenced = pipe->fenced;
	LWLockRelease(&pipe->lock);
	return fenced;
}

void
pp_pipe_set_fenced(PpPipe *pipe, bool fenced)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->fenced = fenced;
	LWLockRelease(&pipe->lock);
}

/* A batch up to `last` is committed. */
void
pp_pipe_applied(PpPipe *pipe, PpId last)
{
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	if (pp_id_compare(last, pipe->last_id) > 0)
		pipe->last_id = last;
	pipe->last_applied_at = GetCurrentTimestamp();
	LWLockRelease(&pipe->lock);
	ConditionVariableBroadcast(&pipe->settled_cv);
}

/* An entry is dead: counts it by its SQLSTATE. */
void
pp_pipe_count_error(PpPipe *pipe, int sqlstate)
{
	int i = 0;

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	while (i < pipe->num_errors && pipe->errors[i].sqlstate != sqlstate)
		i++;
	if (i == pipe->num_errors && i < PP_ERROR_CODES)
		pipe->errors[pipe->num_errors++].sqlstate = i < PP_ERROR_CODES - 1 ? sqlstate : 0;
	pipe->errors[Min(i, PP_ERROR_CODES - 1)].entries++;
	LWLockRelease(&pipe->lock);
}

/* A step took so many seconds, or a batch had so many entries. */
void
pp_pipe_observe(PpPipe *pipe, PpHistogramKind kind, double value)
{
	PpSteady now = pp_steady_now();

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pp_histogram_add(&pipe->histograms, kind, value, now);
	LWLockRelease(&pipe->lock);
}

/* A step that began at `start` has ended. */
void
pp_pipe_observe_since(PpPipe *pipe, PpHistogramKind kind, PpSteady start)
{
	pp_pipe_observe(pipe, kind, pp_steady_seconds(start));
}

/*
 * How old are the entries of a batch that were applied just now?  IDs that are no times, before there
 * were streams, do not tell.
 */
void
pp_pipe_observe_ages(PpPipe *pipe, const PpBatch *batch)
{
	TimestampTz now = GetCurrentTimestamp();
	PpSteady at = pp_steady_now();

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	for (int i = 0; i < batch->n; i++)
	{
		const PpEntry *entry = &batch->entries[i];

		if (entry->verdict == PP_VERDICT_APPLIED && entry->id.ms >= MS_OF_2018)
			pp_histogram_add(&pipe->histograms, PP_HIST_END_TO_END,
							 Max(0, (double) (now - pp_id_time(entry->id)) / USECS_PER_SEC), at);
	}
	LWLockRelease(&pipe->lock);
}

void
pp_pipe_acknowledged(PpPipe *pipe)
{
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	pipe->last_ack_at = now;
	LWLockRelease(&pipe->lock);
	LWLockAcquire(&pp_my_proc->lock, LW_EXCLUSIVE);
	pp_my_proc->info.last_ack_at = now;
	LWLockRelease(&pp_my_proc->lock);
}

/* A dead letter is due then, as its row says, perhaps sooner than all others; 0: there is none. */
void
pp_pipe_retry_at(PpPipe *pipe, TimestampTz at)
{
	if (at == 0)
		return;
	LWLockAcquire(&pipe->lock, LW_EXCLUSIVE);
	if (pipe->next_retry_at == 0 || at < pipe->next_retry_at)
		pipe->next_retry_at = at;
	LWLockRelease(&pipe->lock);
}

/* When the next dead letter is due (0: none is known); with `take` it is forgotten. */
TimestampTz
pp_pipe_next_retry(PpPipe *pipe, bool take)
{
	TimestampTz at;

	LWLockAcquire(&pipe->lock, take ? LW_EXCLUSIVE : LW_SHARED);
	at = pipe->next_retry_at;
	if (take)
		pipe->next_retry_at = 0;
	LWLockRelease(&pipe->lock);
	return at;
}
