/*
 * statement.c
 *		A pipeline's statement: prepared, and run over a set of entries.
 *
 * The entries are a relation, postpipe_batch, that the statement reads (batch_relation.c).
 *
 * The statement runs as the target's owner, or for a statement of the user as the pipeline's
 * owner, security-restricted, in a GUC nest level that is rolled back after each run, so that
 * nothing a trigger sets stays.
 *
 * Two plans are kept, one made for a few entries and one for many: row estimates freeze with a
 * kept plan, and a join that is right for 1000 entries is wrong for one.
 */
#include "statement.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/parsetree.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "batch_relation.h"
#include "bulk_insert.h"
#include "compat.h"
#include "returned.h"
#include "run_plan.h"
#include "shmem.h"
#include "target.h"

#define PLANS       (2 * PP_FORMS) /* for a few and for many entries, of each form */
#define SMALL_BATCH 16             /* entries, up to which the plan for a few is used */
#define FEW         1              /* what the planner is told then … */
#define MANY        1000           /* … and else */

struct PpStatement
{
	MemoryContext cxt;
	MemoryContext run_cxt; /* for one run */
	const PpExtension *ext;
	PpPipeline *pipeline;
	MemoryContext made_cxt; /* holds … */
	PpGenerated *made;      /* … what is run; NULL: not made yet */
	bool bulk;              /* the plain form may be run by bulk_insert.c */
	Oid role;
	Oid target;     /* OID of the target table; InvalidOid with a user's statement */
	TupleDesc desc; /* of postpipe_batch */
	SPIPlanPtr plans[PLANS];
	int timeout_ms;         /* 0: none */
	TimestampTz started_at; /* of the run that is under way; 0: none is */
	bool over_entries;      /* it has some, and has not ended */
};

/* Set by invalidation: some relation has changed, look at the definition again. */
static bool relations_changed = true;
static Oid watched_target;

static void
relation_changed(Datum arg, Oid relid)
{
	if (!OidIsValid(relid) || !OidIsValid(watched_target) || relid == watched_target)
		relations_changed = true;
}

static void
role_changed(Datum arg, int cache_id, uint32 hash)
{
	relations_changed = true;
}

/*
 * pp_statement_create
 *		For one pipeline, living in `cxt`.  Needs a transaction.  One per process: the invalidation
 *		callback is shared.
 */
PpStatement *
pp_statement_create(MemoryContext cxt, const PpExtension *ext, PpPipeline *pipeline)
{
	static bool registered = false;
	MemoryContext old = MemoryContextSwitchTo(cxt);
	PpStatement *s = palloc0(sizeof(PpStatement));

	s->cxt = cxt;
	s->run_cxt = AllocSetContextCreate(cxt, "postpipe statement run", PP_BATCH_CONTEXT_SIZES);
	s->ext = ext;
	s->pipeline = pipeline;
	s->desc = pp_batch_descriptor(ext);
	/* In a background worker nobody else arms it; in a backend the session has its own. */
	if (pp_my_proc != NULL && !get_timeout_active(STATEMENT_TIMEOUT))
		s->timeout_ms = pp_pipeline_option_ms(pipeline, "statement_timeout", StatementTimeout);
	MemoryContextSwitchTo(old);
	if (!registered)
	{
		CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
		/* Who may act as whom, and who is a superuser. */
		CacheRegisterSyscacheCallback(AUTHOID, role_changed, (Datum) 0);
		CacheRegisterSyscacheCallback(AUTHMEMMEMROLE, role_changed, (Datum) 0);
	}
	registered = true;
	relations_changed = true;
	return s;
}

/* A role that was dropped would run as an OID that somebody else may get. */
static void
check_owner(const PpStatement *s)
{
	const PpPipeline *p = s->pipeline;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(p->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("owner of pipeline \"%s\" does not exist", p->name),
				 errhint("Give it another one: SELECT postpipe_alter_pipeline('%s', owner => "
						 "'...').",
						 p->name)));
}

static void
forget_plans(PpStatement *s)
{
	for (int i = 0; i < PLANS; i++)
	{
		if (s->plans[i] != NULL)
			SPI_freeplan(s->plans[i]);
		s->plans[i] = NULL;
	}
}

static bool
same_forms(const PpGenerated *a, const PpGenerated *b)
{
	for (int i = 0; i < PP_FORMS; i++)
		if ((a->forms[i] == NULL) != (b->forms[i] == NULL) ||
			(a->forms[i] != NULL && strcmp(a->forms[i], b->forms[i]) != 0))
			return false;
	return true;
}

/* Takes over what was made, in `cxt`, and forgets the plans when it or the role has changed. */
static void
take_over(PpStatement *s, MemoryContext cxt, PpGenerated *made, Oid role, Oid target)
{
	if (s->made == NULL || !same_forms(s->made, made) || s->role != role)
		forget_plans(s);
	MemoryContextSetParent(cxt, s->cxt);
	if (s->made_cxt != NULL)
		MemoryContextDelete(s->made_cxt);
	s->made_cxt = cxt;
	s->made = made;
	s->role = role;
	s->target = target;
	watched_target = target;
	relations_changed = false;
}

/* A user's statement.  Planned anew, because which tables it may write depends on who owns them. */
static void
make_own(PpStatement *s, MemoryContext cxt)
{
	PpGenerated *made = palloc0(sizeof(PpGenerated));

	made->forms[PP_FORM_WHOLE] = s->pipeline->statement;
	forget_plans(s);
	take_over(s, cxt, made, s->pipeline->owner, InvalidOid);
}

/*
 * Rows that would have been merged must not be appended because the primary key that says so is
 * gone.
 */
static void
check_key_is_there(const PpStatement *s, const PpGenerated *made)
{
	if (made->key != NIL || s->made == NULL || s->made->key == NIL)
		return;
	ereport(ERROR, (errcode(ERRCODE_INVALID_COLUMN_REFERENCE),
					errmsg("target table %s of pipeline \"%s\" has no primary key any more",
						   s->pipeline->target, s->pipeline->name),
					errhint("Add it again, and the pipeline goes on by itself; or run "
							"postpipe_pause('%s') and postpipe_resume('%s') to append every entry.",
							s->pipeline->name, s->pipeline->name)));
}

static void
make_for_target(PpStatement *s, MemoryContext cxt)
{
	PpPipeline adapted = *s->pipeline;
	PpGenerated *made;
	Relation rel;

	watched_target = InvalidOid;
	rel = pp_target_open(s->pipeline, RowExclusiveLock);
	if (rel == NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE),
			 errmsg("target table %s of pipeline \"%s\" does not exist", s->pipeline->target,
					s->pipeline->name),
			 s->pipeline->builtin
				 ? errhint(
					   "Create it, or run postpipe_pause('%s') and postpipe_resume('%s') to let "
					   "postpipe create it.",
					   s->pipeline->name, s->pipeline->name)
				 : errhint("Create it; the pipeline goes on by itself then.")));
	pp_target_check(s->pipeline, rel);
	if (pp_posts_owns(s->pipeline))
		pp_posts_adapt(&adapted, rel);
	made = pp_generate(s->ext, &adapted, rel);
	check_key_is_there(s, made);
	s->bulk = pp_bulk_insert_allowed(rel);
	take_over(s, cxt, made, rel->rd_rel->relowner, RelationGetRelid(rel));
	/* Its parts may change, and nothing of itself. */
	if (rel->rd_rel->relhassubclass)
		watched_target = InvalidOid;
	table_close(rel, NoLock);
}

/*
 * pp_statement_prepare
 *		Makes the statement, if anything has changed since it was made.  In a transaction with an
 *		active snapshot; throws when the definition does not fit the database as it is now.
 */
void
pp_statement_prepare(PpStatement *s)
{
	MemoryContext cxt;
	MemoryContext old;

	/*
	 * First the lock that the run takes, because waiting for it is when the table changes: an index
	 * that is gone since must be missed before the plain form is chosen, which does not need it.
	 */
	if (OidIsValid(s->target))
		LockRelationOid(s->target, RowExclusiveLock);
	pp_target_check_own(s->ext);
	if (!relations_changed)
		return;
	check_owner(s);
	cxt = AllocSetContextCreate(CurrentMemoryContext, "postpipe statement", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(cxt);
	if (s->pipeline->target == NULL)
		make_own(s, cxt);
	else
		make_for_target(s, cxt);
	MemoryContextSwitchTo(old);
}

/*
 * Frees the kept plans of a statement that is not needed any more.  A trigger may have needed it: then
 * another statement goes on, which has not been watched meanwhile.
 */
void
pp_statement_destroy(PpStatement *s)
{
	forget_plans(s);
	watched_target = InvalidOid;
	relations_changed = true;
}

/* The target's key, PpKeyColumn; NIL: no row can conflict with another, or we do not know. */
List *
pp_statement_key(const PpStatement *s)
{
	return s->made->key;
}

/* The role that the statement runs as. */
Oid
pp_statement_role(const PpStatement *s)
{
	return s->role;
}

/* Is there such a form of the statement? */
bool
pp_statement_has(const PpStatement *s, PpForm form)
{
	return s->made->forms[form] != NULL;
}

const char *
pp_statement_sql(const PpStatement *s)
{
	return s->made->forms[PP_FORM_WHOLE];
}

/* Of the tables that a plan writes.  It must not be saved yet: then no resource owner has it. */
static void
check_written(PpStatement *s, SPIPlanPtr plan)
{
	CachedPlan *cplan = SPI_plan_get_cached_plan(plan);
	List *relids = NIL;
	ListCell *lc;
	ListCell *lc2;

	if (cplan == NULL)
		return;
	foreach (lc, cplan->stmt_list)
	{
		PlannedStmt *stmt = lfirst_node(PlannedStmt, lc);

		foreach (lc2, stmt->resultRelations)
			relids = lappend_oid(relids, rt_fetch(lfirst_int(lc2), stmt->rtable)->relid);
	}
	ReleaseCachedPlan(cplan, NULL);
	foreach (lc, relids)
		pp_target_check_written(s->pipeline, s->role, lfirst_oid(lc));
}

static SPIPlanPtr
get_plan(PpStatement *s, int n, PpForm form)
{
	int which = (n <= SMALL_BATCH ? 0 : 1) + 2 * (int) form;
	SPIPlanPtr plan;

	if (s->plans[which] != NULL)
		return s->plans[which];
	plan = SPI_prepare(s->made->forms[form], 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not prepare the statement: %s", SPI_result_code_string(SPI_result));
	if (list_length(SPI_plan_get_plan_sources(plan)) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR), errmsg("a pipeline needs exactly one statement"),
				 errhint("Several changes fit into one statement with WITH.")));
	if (s->pipeline->target == NULL)
		check_written(s, plan);
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep the plan of the statement");
	s->plans[which] = plan;
	return plan;
}

static void
set_for_statement(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
							 false);
}

/* Deferred constraints would pass the savepoints and fail at commit: they are checked at once. */
static void
set_constraints_immediate(void)
{
	ConstraintsSetStmt *stmt = makeNode(ConstraintsSetStmt);

	stmt->constraints = NIL;
	stmt->deferred = false;
	AfterTriggerSetState(stmt);
}

/*
 * pp_statement_failed
 *		After any error: if a run was under way, it is no more.  Returns whether it took as long as it
 *		may; else, or when there was none, a cancel came from somebody.
 */
bool
pp_statement_failed(PpStatement *s)
{
	TimestampTz started_at = s->started_at;

	s->started_at = 0;
	return started_at != 0 && s->timeout_ms > 0 &&
		   TimestampDifferenceExceeds(started_at, GetCurrentTimestamp(), s->timeout_ms);
}

/* Did what was just caught come up while the statement ran over entries?  Asked once. */
bool
pp_statement_failed_on_entries(PpStatement *s)
{
	bool failed = s->over_entries;

	s->over_entries = false;
	return failed;
}

static void run(PpStatement *s, PpEntry **entries, int n, PpForm form, PpReturned *returned);

/*
 * pp_statement_run
 *		Runs the statement over `n` entries (0: an empty relation), in a transaction, with SPI
 *		connected, in this form, which there must be.  Returns how many rows the statement said it
 *		did not insert.  Throws what the statement throws; the caller's (sub)transaction abort puts
 *		role and settings back.
 */
int
pp_statement_run(PpStatement *s, PpEntry **entries, int n, PpForm form)
{
	PpReturned returned;

	pp_returned_init(&returned);
	run(s, entries, n, form, &returned);
	return returned.not_inserted;
}

/*
 * pp_statement_find_bad
 *		Sets bad[i] of those entries whose values cannot be converted to the types of their columns.
 *		As pp_statement_run() otherwise; throws when a type's input function cannot do without.
 */
void
pp_statement_find_bad(PpStatement *s, PpEntry **entries, int n, bool *bad)
{
	PpReturned returned;

	pp_returned_init(&returned);
	returned.bad = bad;
	run(s, entries, n, PP_FORM_CHECK, &returned);
}

/*
 * pp_statement_show
 *		As pp_statement_run() in the whole form, with one entry.  Appends the rows that it wrote (or those
 *		that a user's statement returns), as the elements of a JSON array.  False: it returns none.
 */
bool
pp_statement_show(PpStatement *s, PpEntry *entry, StringInfo rows)
{
	PpForm form = s->made->forms[PP_FORM_SHOW] != NULL ? PP_FORM_SHOW : PP_FORM_WHOLE;
	PpReturned returned;

	pp_returned_init(&returned);
	returned.rows = rows;
	run(s, &entry, 1, form, &returned);
	return returned.any;
}

static void
run(PpStatement *s, PpEntry **entries, int n, PpForm form, PpReturned *returned)
{
	PpBatchRelation *batch;
	SPIPlanPtr plan;
	MemoryContext old;
	Oid save_user;
	int save_context;
	int nest;

	/* One that an aborted run left behind lives in run_cxt: away with it before the reset. */
	pp_batch_unregister();
	MemoryContextReset(s->run_cxt);
	old = MemoryContextSwitchTo(s->run_cxt);
	batch =
		pp_batch_register(s->desc, s->pipeline->stream, entries, n, n <= SMALL_BATCH ? FEW : MANY);

	GetUserIdAndSecContext(&save_user, &save_context);
	SetUserIdAndSecContext(s->role, save_context | SECURITY_RESTRICTED_OPERATION);
	nest = NewGUCNestLevel();
	set_for_statement("search_path", s->pipeline->search_path);
	set_for_statement("TimeZone", "UTC");
	set_for_statement("DateStyle", "ISO, MDY");
	set_for_statement("IntervalStyle", "postgres");
	set_for_statement("bytea_output", "hex");
	set_for_statement("extra_float_digits", "1");
	set_constraints_immediate();
	s->started_at = GetCurrentTimestamp();
	if (s->timeout_ms > 0)
		enable_timeout_after(STATEMENT_TIMEOUT, s->timeout_ms);

	plan = get_plan(s, n, form);
	s->over_entries = n > 0;
	pp_run_plan(plan, batch, form == PP_FORM_PLAIN && s->bulk, &returned->pub);
	s->over_entries = false;
	if (s->timeout_ms > 0)
		disable_timeout(STATEMENT_TIMEOUT, false);
	s->started_at = 0;
	AtEOXact_GUC(false, nest);
	SetUserIdAndSecContext(save_user, save_context);
	pp_batch_unregister();
	MemoryContextSwitchTo(old);
}
