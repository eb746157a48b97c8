/*
 * sqlfuncs_apply.c
 *		For SQL functions that run a pipeline's statement in the caller's transaction: replay, ingest.
 *
 * They take the locks that a batch takes, run the statement as the pipeline does, and count what they
 * did when their transaction is committed.
 */
#include "sqlfuncs.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "apply_internal.h"
#include "dead_letter.h"
#include "stats.h"

/* What a (sub)transaction adds to the counters of a pipeline when it is committed. */
typedef struct Counts
{
	char pipeline[PP_PIPELINE_LEN];
	SubTransactionId subxact;
	uint64 n[PP_COUNT_NUM];
} Counts;

static List *counts_at_commit; /* in TopTransactionContext */

/*
 * The pipeline that the first argument names, which the caller may manage, locked after the extension.
 * It is looked at before, so that nobody locks what is not his, and after that, as it is then.
 */
PpPipeline *
pp_function_lock_pipeline(FunctionCallInfo fcinfo, PpExtension *ext, LOCKMODE mode)
{
	char *name = pp_required_text_arg(fcinfo, 0, "pipeline");

	pp_require_preload();
	pp_require_extension(ext);
	(void) pp_require_pipeline(ext, name);
	LockDatabaseObject(ExtensionRelationId, ext->oid, 0, AccessShareLock);
	pp_pipeline_lock(ext, name, mode);
	return pp_require_pipeline(ext, name);
}

/* The same, of a pipeline whose group was asked as `p` before; throws when that is another group now. */
void
pp_function_lock_same(FunctionCallInfo fcinfo, PpExtension *ext, const PpPipeline *p, LOCKMODE mode)
{
	const PpPipeline *now = pp_function_lock_pipeline(fcinfo, ext, mode);

	if (strcmp(now->stream, p->stream) != 0 || strcmp(now->group, p->group) != 0 ||
		(now->redis == NULL) != (p->redis == NULL) ||
		memcmp(&now->redis_url, &p->redis_url, sizeof(PpRedisUrl)) != 0)
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("pipeline \"%s\" was changed at the same time", p->name),
						errhint("Call the function again.")));
}

/*
 * pp_function_has_deferred
 *		Has the caller's transaction deferred something?  The statement is run with all constraints immediate
 *		(statement_run.c), so that would come up now: fail for what is still to be done, and fire triggers as
 *		another role.  Only what is deferrable can wait.  The catalog as it is now, not as the transaction's
 *		snapshot has it: a trigger that is newer fires as well.
 */
bool
pp_function_has_deferred(void)
{
	Relation rel = table_open(TriggerRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple tuple;
	bool found = false;

	while (!found && HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);

		found = trigger->tgdeferrable && AfterTriggerPendingOnRel(trigger->tgrelid);
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

/* Throws when it has.  For every function that runs the statement. */
void
pp_function_refuse_deferred(const char *function)
{
	if (pp_function_has_deferred())
		ereport(ERROR, (errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
						errmsg("%s cannot run while this transaction has deferred constraints or "
							   "triggers to check",
							   function),
						errhint("Commit first, or run SET CONSTRAINTS ALL IMMEDIATE.")));
}

/* What applies entries, in `cxt`; pp_function_apply_end() has to follow, also after an error. */
PpApply *
pp_function_apply_begin(MemoryContext cxt, const PpExtension *ext, PpPipeline *p)
{
	PpApply *a = pp_apply_create(cxt, ext, p, 0);

	a->statement = pp_statement_create(cxt, ext, p);
	return a;
}

/* Frees what does not live in its context. */
void
pp_function_apply_end(PpApply *a)
{
	pp_statement_destroy(a->statement);
	pp_ledger_free_plans(&a->ledger);
}

/*
 * Together these entries fail: may they pass one after the other?  So may a key that several write in
 * different ways, and, where they were run in waves, what an entry takes that another one has left before it.
 */
static bool
may_depend_on_order(const PpEntryError *error, PpEntry **entries, int n)
{
	if (error->sqlstate == ERRCODE_CARDINALITY_VIOLATION)
		return n > 1;
	if (error->sqlstate == ERRCODE_UNIQUE_VIOLATION ||
		error->sqlstate == ERRCODE_EXCLUSION_VIOLATION)
		for (int i = 0; i < n; i++)
			if (entries[i]->wave > 0)
				return true;
	return false;
}

/*
 * pp_function_run
 *		Runs the statement over the open entries, as a worker does; an error is thrown.
 */
void
pp_function_run(PpApply *a, PpBatch *batch)
{
	PpApplyResult result = {0};
	PpEntryError *error = NULL;
	PpEntry **open;
	int n;

	MemoryContextReset(a->call_cxt);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	pp_statement_prepare(a->statement);
	n = pp_apply_collect_open(a, batch, &open);
	if (n > 0)
		error = pp_apply_run_part(a, open, n, true, &result);
	if (error != NULL && !may_depend_on_order(error, open, n))
		pp_function_throw(error);
	for (int i = 0; error != NULL && i < n; i++)
		pp_apply_run_waves(a, open + i, 1, false, &result);
	SPI_finish();
}

/*
 * pp_function_isolate
 *		Runs the statement over the open entries and gives those that fail the verdict "dead"; an error
 *		that is not an entry's is thrown.  Returns how many of those that passed met a row with their key.
 */
int
pp_function_isolate(PpApply *a, PpBatch *batch)
{
	PpApplyResult result = {0};
	PpEntryError *error;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	pp_statement_prepare(a->statement);
	error = pp_apply_isolate(a, batch, &result);
	SPI_finish();
	if (error != NULL)
		pp_function_throw(error);
	return result.conflicted;
}

/*
 * pp_function_hash_letters
 *		Definition or table may have changed: the keys of dead letters are found anew.  Before any of them
 *		is locked; what keeps the statement from being prepared is thrown.
 */
void
pp_function_hash_letters(const PpExtension *ext, PpPipeline *p)
{
	PpStoreScope store;
	MemoryContext cxt;
	PpApply *a;

	if (pp_dead_letter_count(ext, p->name) == 0)
		return;
	cxt = AllocSetContextCreate(CurrentMemoryContext, "postpipe letters", ALLOCSET_DEFAULT_SIZES);
	a = pp_function_apply_begin(cxt, ext, p);
	PG_TRY();
	{
		if (SPI_connect() != SPI_OK_CONNECT)
			elog(ERROR, "could not connect to SPI");
		pp_statement_prepare(a->statement);
		SPI_finish();
		pp_store_begin(&store, ext);
		pp_overtaken_hash_again(a);
		pp_store_end(&store);
	}
	PG_FINALLY();
	{
		pp_function_apply_end(a);
	}
	PG_END_TRY();
	MemoryContextDelete(cxt);
}

/*
 * pp_function_record_ingested
 *		Puts on record that so many events came in without a worker, under an ID or (NULL) none.  False:
 *		one with this ID is on record.
 */
bool
pp_function_record_ingested(const PpExtension *ext, const PpPipeline *p, const PpId *id,
							int64 applied)
{
	Oid types[] = {TEXTOID, pp_id_type_oid(ext), INT8OID};
	Datum values[] = {CStringGetTextDatum(p->name), PointerGetDatum(id), Int64GetDatum(applied)};
	bool nulls[] = {false, id == NULL, false};

	return pp_store_execute(
			   ext,
			   psprintf("INSERT INTO %1$s.postpipe_ingested (pipeline, id, epoch, applied) "
						"SELECT $1, $2, coalesce(max(epoch), 1), $3 FROM %1$s.postpipe_epoch "
						"WHERE pipeline = $1 ON CONFLICT (pipeline, id) DO NOTHING",
						ext->schema_name),
			   3, types, values, nulls) > 0;
}

/* An error that is not an entry's goes to the caller, as it came. */
void
pp_function_throw(const PpEntryError *error)
{
	ereport(ERROR,
			(errcode(error->sqlstate), errmsg_internal("%s", error->message),
			 error->detail ? errdetail_internal("%s", error->detail) : 0,
			 error->hint ? errhint("%s", error->hint) : 0,
			 error->context ? errcontext("%s", error->context) : 0,
			 error->schema_name ? err_generic_string(PG_DIAG_SCHEMA_NAME, error->schema_name) : 0,
			 error->table_name ? err_generic_string(PG_DIAG_TABLE_NAME, error->table_name) : 0,
			 error->column_name ? err_generic_string(PG_DIAG_COLUMN_NAME, error->column_name) : 0,
			 error->constraint_name
				 ? err_generic_string(PG_DIAG_CONSTRAINT_NAME, error->constraint_name)
				 : 0));
	pg_unreachable();
}

static Counts *
find_counts(const char *pipeline, SubTransactionId subxact)
{
	ListCell *lc;

	foreach (lc, counts_at_commit)
	{
		Counts *c = lfirst(lc);

		if (c->subxact == subxact && strcmp(c->pipeline, pipeline) == 0)
			return c;
	}
	return NULL;
}

static void
count_at_commit(XactEvent event, void *arg)
{
	ListCell *lc;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	foreach (lc, counts_at_commit)
	{
		Counts *c = lfirst(lc);
		PpPipe *pipe = event == XACT_EVENT_COMMIT ? pp_pipe_find(MyDatabaseId, c->pipeline) : NULL;

		for (int i = 0; i < PP_COUNT_NUM && pipe != NULL; i++)
			if (c->n[i] > 0)
				pp_count(pipe, i, c->n[i]);
		/* What a function makes dead it has skipped (sqlfuncs_skip.c). */
		for (uint64 i = 0; i < c->n[PP_COUNT_DEAD] && pipe != NULL; i++)
			pp_pipe_count_error(pipe, ERRCODE_OPERATOR_INTERVENTION);
	}
	counts_at_commit = NIL; /* it lives in the transaction's memory */
}

/* What a subtransaction did goes with it, or becomes its parent's. */
static void
count_at_subcommit(SubXactEvent event, SubTransactionId subxact, SubTransactionId parent, void *arg)
{
	ListCell *lc;

	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach (lc, counts_at_commit)
	{
		Counts *c = lfirst(lc);
		Counts *above = find_counts(c->pipeline, parent);

		if (c->subxact != subxact)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB && above == NULL)
		{
			c->subxact = parent;
			continue;
		}
		for (int i = 0; i < PP_COUNT_NUM && event == SUBXACT_EVENT_COMMIT_SUB; i++)
			above->n[i] += c->n[i];
		counts_at_commit = foreach_delete_current(counts_at_commit, lc);
		pfree(c);
	}
}

/* Adds to a counter of the pipeline when this transaction is committed. */
void
pp_function_count(const char *pipeline, PpCounter counter, uint64 n)
{
	static bool registered = false;
	SubTransactionId subxact = GetCurrentSubTransactionId();
	Counts *c = find_counts(pipeline, subxact);

	if (!registered)
	{
		RegisterXactCallback(count_at_commit, NULL);
		RegisterSubXactCallback(count_at_subcommit, NULL);
	}
	registered = true;
	if (c == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

		c = palloc0(sizeof(Counts));
		c->subxact = subxact;
		strlcpy(c->pipeline, pipeline, sizeof(c->pipeline));
		counts_at_commit = lappend(counts_at_commit, c);
		MemoryContextSwitchTo(old);
	}
	c->n[counter] += n;
}
