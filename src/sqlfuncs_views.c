/*
 * sqlfuncs_views.c
 *		The functions under postpipe_pipelines, postpipe_audit and postpipe_lost.
 */
#include "sqlfuncs.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "generate.h"
#include "stats.h"
#include "store.h"
#include "target.h"

PG_FUNCTION_INFO_V1(postpipe_pipelines_0_1);
PG_FUNCTION_INFO_V1(postpipe_pipeline_owner);
PG_FUNCTION_INFO_V1(postpipe_audit_0_1);
PG_FUNCTION_INFO_V1(postpipe_lost_0_1);

/* What generate() is given and gives back. */
typedef struct Generate
{
	const PpExtension *ext;
	const PpPipeline *p;
	char *sql;
} Generate;

static void
generate(void *arg)
{
	Generate *g = arg;
	Oid oid = pp_target_oid(g->p->target, NoLock, true);
	Relation rel;

	if (!OidIsValid(oid) || !ConditionalLockRelationOid(oid, AccessShareLock))
		return;
	rel = try_relation_open(oid, NoLock);
	if (rel == NULL)
		return;
	g->sql = pp_generate(g->ext, g->p, rel)->forms[PP_FORM_WHOLE];
	relation_close(rel, AccessShareLock); /* whoever looks holds up no DDL after that */
}

/*
 * The statement that runs; NULL while the target is not there, is locked, does not fit, or may not
 * be seen by who asks: one pipeline's trouble must not hide the others.
 */
static char *
current_statement(const PpExtension *ext, const PpPipeline *p)
{
	Generate g = {ext, p, p->statement};

	if (g.sql == NULL)
		(void) pp_function_attempt(generate, &g);
	return g.sql;
}

/* The owner of a pipeline, for views that show its rows to its members. NULL: there is none. */
Datum
postpipe_pipeline_owner(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	PpPipeline *p;

	pp_require_extension(&ext);
	p = pp_pipeline_get(&ext, text_to_cstring(PG_GETARG_TEXT_PP(0)));
	if (p == NULL)
		PG_RETURN_NULL();
	PG_RETURN_OID(p->owner);
}

/* Definitions are for who could change them, and for those who may read all data or watch all. */
static bool
may_see(const PpPipeline *p)
{
	return has_privs_of_role(GetUserId(), p->owner) ||
		   has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_DATA) ||
		   has_privs_of_role(GetUserId(), ROLE_PG_MONITOR);
}

/* postpipe_pipelines: the definitions. */
Datum
postpipe_pipelines_0_1(PG_FUNCTION_ARGS)
{
	PpExtension ext;
	ListCell *lc;

	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	foreach (lc, pp_pipeline_list(&ext))
	{
		PpPipeline *p = lfirst(lc);
		PpRow row = {0};

		if (!may_see(p))
			continue;
		pp_row_text(&row, p->name);
		pp_row_text(&row, GetUserNameFromId(p->owner, true));
		pp_row_text(&row, p->stream);
		pp_row_text(&row, p->group);
		pp_row_text(&row, p->redis);
		pp_row_text(&row, p->target);
		pp_row_texts(&row, p->key);
		pp_row_text(&row, p->on_conflict);
		pp_row_text(&row, p->newer_by);
		pp_row_put(&row, PointerGetDatum(p->columns), p->columns == NULL);
		pp_row_texts(&row, p->event_types);
		pp_row_text(&row, current_statement(&ext, p));
		pp_row_put(&row, BoolGetDatum(p->statement == NULL), false);
		pp_row_text(&row, p->search_path);
		pp_row_put(&row, Int32GetDatum(p->workers), false);
		pp_row_put(&row, BoolGetDatum(p->enabled), false);
		pp_row_text(&row, p->enabled_reason);
		pp_row_put(&row, JsonbPGetDatum(p->options), false);
		pp_row_time(&row, p->created_at);
		pp_row_time(&row, p->altered_at);
		pp_row_emit(fcinfo, &row);
	}
	return (Datum) 0;
}

/* What the tables say, a row per pipeline and epoch. */
static const char audit_query[] =
	"SELECT e.pipeline, e.epoch, e.since_id, CASE WHEN e.epoch = max(e.epoch) OVER (PARTITION BY "
	"e.pipeline) THEN p.sealed_id END, greatest(e.last_id, l.last_id), "
	"(e.applied + coalesce(l.applied, 0))::bigint, "
	"(e.filtered + coalesce(l.filtered, 0))::bigint, coalesce(d.retrying, 0), coalesce(d.dead, 0), "
	"(e.discarded + coalesce(l.discarded, 0))::bigint, CASE WHEN r.unknown THEN NULL ELSE "
	"coalesce(r.lost, 0)::bigint END, e.base_added, "
	"e.epoch = max(e.epoch) OVER (PARTITION BY e.pipeline), coalesce(p.shared, false), "
	"coalesce(r.unknown, false), coalesce(i.ingested, 0)::bigint "
	"FROM %1$s.postpipe_epoch e LEFT JOIN %1$s.postpipe_progress p USING (pipeline) "
	"LEFT JOIN (SELECT pipeline, epoch, %1$s.max(last_id) AS last_id, sum(applied) AS applied, "
	"sum(filtered) AS filtered, sum(discarded) AS discarded FROM %1$s.postpipe_ledger "
	"WHERE NOT summed GROUP BY pipeline, epoch) l USING (pipeline, epoch) "
	"LEFT JOIN (SELECT pipeline, epoch, sum(entries) AS lost, bool_or(entries IS NULL) AS unknown "
	"FROM %1$s.postpipe_lost_range GROUP BY pipeline, epoch) r USING (pipeline, epoch) "
	"LEFT JOIN (SELECT pipeline, epoch, count(*) FILTER (WHERE state = 'retrying') AS retrying, "
	"count(*) FILTER (WHERE state = 'dead' AND NOT undelivered) AS dead FROM %1$s.postpipe_dead_letter "
	"GROUP BY pipeline, epoch) d USING (pipeline, epoch) "
	"LEFT JOIN (SELECT pipeline, epoch, sum(applied) AS ingested FROM %1$s.postpipe_ingested "
	"GROUP BY pipeline, epoch) i USING (pipeline, epoch) "
	"ORDER BY e.pipeline, e.epoch";

/*
 * Adds what was measured in Redis to a row of the tables, and the balance where it is provable: if
 * nothing was settled since it was measured, nor while the tables were read, before which the pipelines
 * had settled so many each.
 */
static void
put_balance(PpRow *row, HeapTuple tuple, TupleDesc desc, const uint64 *settled)
{
	bool isnull;
	bool no_base;
	int64 n[12];
	char *name = TextDatumGetCString(SPI_getbinval(tuple, desc, 1, &isnull));
	int64 base = DatumGetInt64(SPI_getbinval(tuple, desc, 12, &no_base));
	bool current = DatumGetBool(SPI_getbinval(tuple, desc, 13, &isnull));
	bool shared = DatumGetBool(SPI_getbinval(tuple, desc, 14, &isnull));
	bool unknown = DatumGetBool(SPI_getbinval(tuple, desc, 15, &isnull));
	PpPipe *pipe = pp_pipe_find(MyDatabaseId, name);
	PpMeasured m = {0};
	PpStanding looked = {0};
	PpId mark = {0, 0};
	bool measured;
	const char *reason = NULL;
	int64 sum = 0;
	int64 balance;

	for (int i = 6; i <= 11; i++)
		sum += n[i] = DatumGetInt64(SPI_getbinval(tuple, desc, i, &isnull));
	if (pipe != NULL && current)
	{
		LWLockAcquire(&pipe->lock, LW_SHARED);
		m = pipe->measured;
		looked = pipe->looked;
		mark = pipe->mark;
		LWLockRelease(&pipe->lock);
	}
	/* What is committed and not acknowledged yet is in the tables already. */
	m.pending -= Max(m.unacknowledged, 0);
	balance = m.standing.added - base - sum - m.pending - m.lag;
	measured = m.at != 0 && m.pending >= 0 && m.lag >= 0;
	if (!current)
		reason = "an epoch that has ended is not measured any more";
	else if (!measured || m.standing.added < 0)
		reason = "Redis does not tell the numbers that are needed, or has not been asked yet";
	else if (no_base)
		reason = "how many entries the epoch began with could not be determined";
	else if (!m.still || m.settled != settled[pipe - pp_shared->pipes] ||
			 m.settled != pp_pipe_settled(pipe))
		reason = "measured while entries were moving";
	else if (m.unacknowledged < 0)
		reason = "of the pending entries some may be settled: no worker has looked them up yet, or "
				 "they are being acknowledged";
	else if (unknown)
		reason = "how many entries are lost could not be determined; see postpipe_lost";
	else if (shared && balance != 0)
		reason = "the group has other consumers, and what they acknowledge is not counted here";
	else if (balance != 0 && memcmp(&looked, &m.standing, sizeof(looked)) != 0)
		reason = "stream or group have changed since a worker of this pipeline looked at them";
	else if (balance < 0 && pp_id_compare(m.standing.delivered, mark) < 0)
		reason = "the group was set back, and what it has not delivered again is settled already";

	pp_row_int8(row, m.standing.added - base, !measured || m.standing.added < 0 || no_base);
	for (int i = 6; i <= 10; i++)
		pp_row_int8(row, n[i], false);
	pp_row_int8(row, n[11], unknown); /* lost */
	pp_row_int8(row, m.pending, !measured);
	pp_row_int8(row, m.lag, !measured);
	pp_row_int8(row, balance, reason != NULL);
	pp_row_int8(row, pipe ? (int64) pg_atomic_read_u64(&pipe->counters[PP_COUNT_DEDUPLICATED]) : 0,
				pipe == NULL || !current);
	pp_row_put(row, SPI_getbinval(tuple, desc, 16, &isnull), false); /* ingested */
	pp_row_put(row, BoolGetDatum(reason == NULL), false);
	pp_row_text(row, reason);
	pp_row_time(row, m.at);
}

/* postpipe_audit: where every entry is, a row per pipeline and epoch. */
Datum
postpipe_audit_0_1(PG_FUNCTION_ARGS)
{
	PpStoreScope store;
	PpExtension ext;
	uint64 settled[PP_MAX_PIPELINES];

	pp_require_preload();
	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	for (int i = 0; i < PP_MAX_PIPELINES; i++)
		settled[i] = pp_pipe_settled(&pp_shared->pipes[i]);
	pp_store_begin(&store, &ext);
	/* Redis is seen as it is now; so are the tables, whatever this transaction sees else. */
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_execute(psprintf(audit_query, ext.schema_name), true, 0);
	PopActiveSnapshot();
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple tuple = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		PpRow row = {0};

		for (int col = 1; col <= 5; col++)
		{
			bool isnull;
			Datum value = SPI_getbinval(tuple, desc, col, &isnull);

			pp_row_put(&row, value, isnull);
		}
		put_balance(&row, tuple, desc, settled);
		pp_row_emit(fcinfo, &row);
	}
	pp_store_end(&store);
	return (Datum) 0;
}

/* postpipe_lost: entries that vanished from their stream before they could be applied. */
Datum
postpipe_lost_0_1(PG_FUNCTION_ARGS)
{
	PpStoreScope store;
	PpExtension ext;

	InitMaterializedSRF(fcinfo, 0);
	pp_require_extension(&ext);
	pp_store_begin(&store, &ext);
	SPI_execute(psprintf("SELECT pipeline, epoch, first_id, last_id, entries, cause, noticed_at "
						 "FROM %s.postpipe_lost_range ORDER BY pipeline, epoch, noticed_at, "
						 "first_id",
						 ext.schema_name),
				true, 0);
	pp_row_emit_result(fcinfo);
	pp_store_end(&store);
	return (Datum) 0;
}
