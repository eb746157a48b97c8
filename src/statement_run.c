/*
 * statement_run.c
 *		A pipeline's statement, run over a set of entries.
 *
 * The entries are a relation, postpipe_batch, that the statement reads (batch_relation.c).
 *
 * The statement runs as the target's owner, or for a statement of the user as the pipeline's
 * owner, security-restricted, in a GUC nest level that is rolled back after each run, so that
 * nothing a trigger sets stays.
 *
 * A generated statement is parsed and planned with a search_path in which nobody can have put an
 * operator or a function that fits better than the one that is meant, and runs with that of the
 * pipeline, for the triggers' sake.
 *
 * Two plans are kept, one made for a few entries and one for many: row estimates freeze with a
 * kept plan, and a join that is right for 1000 entries is wrong for one.
 */
#include "statement_internal.h"

#include "commands/trigger.h"
#include "miscadmin.h"
#include "parser/parsetree.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/resowner.h"
#include "utils/timeout.h"

#include "batch_relation.h"
#include "compat.h"
#include "guc.h"
#include "returned.h"
#include "target.h"

#define SMALL_BATCH 16   /* entries, up to which the plan for a few is used */
#define FEW         1    /* what the planner is told then … */
#define MANY        1000 /* … and else */

/* A view that is written is no result relation, but the permission is asked for. */
static List *
written_views(const PlannedStmt *stmt)
{
	List *relids = NIL;
	ListCell *lc;

	foreach (lc, pp_permissions_of(stmt))
	{
		const PpPermission *permission = lfirst(lc);

		if ((permission->requiredPerms & (ACL_INSERT | ACL_UPDATE | ACL_DELETE)) != 0 &&
			get_rel_relkind(permission->relid) == RELKIND_VIEW)
			relids = lappend_oid(relids, permission->relid);
	}
	return relids;
}

/*
 * Of the tables and views that a plan writes, once it has their locks: who was waited for may have put another
 * table in the place of one.  owner: of a plan that is saved; NULL: it is not, then no resource owner has it.
 */
static void
check_written(PpStatement *s, SPIPlanPtr plan, ResourceOwner owner)
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
		relids = list_concat(relids, written_views(stmt));
	}
	ReleaseCachedPlan(cplan, owner);
	foreach (lc, relids)
		pp_target_check_written(s->pipeline, s->role, lfirst_oid(lc));
}

/*
 * Of a generated statement: is it the target that it names, which is locked?  A schema can be renamed all the same, and
 * then another table has the name.
 */
static void
check_target(PpStatement *s, SPIPlanPtr plan, PpForm form)
{
	List *relids = ((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))->relationOids;

	/* A rule may have left nothing to do, and the check of values names no table. */
	if (form != PP_FORM_CHECK && relids != NIL && !list_member_oid(relids, s->target))
		ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
						errmsg("another table has taken the place of target %s of pipeline \"%s\"",
							   s->pipeline->target, s->pipeline->name)));
}

/* Of a plan that has its locks.  owner: as of check_written(). */
static void
check_plan(PpStatement *s, SPIPlanPtr plan, PpForm form, ResourceOwner owner)
{
	if (s->pipeline->target == NULL)
		check_written(s, plan, owner);
	else
		check_target(s, plan, form);
}

/*
 * Of a plan that is saved.  Nothing is looked at again unless something has changed since the statement was prepared.
 * To look at it takes locks as well, and after a wait for one it may be planned anew: so until it stays as it is.
 */
static void
lock_and_check(PpStatement *s, SPIPlanPtr plan, PpForm form)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));

	do
	{
		CachedPlan *cplan = SPI_plan_get_cached_plan(plan);

		CHECK_FOR_INTERRUPTS();
		if (cplan == NULL)
			return;
		ReleaseCachedPlan(cplan, CurrentResourceOwner);
		if (!pp_statement_is_current(s))
			check_plan(s, plan, form, CurrentResourceOwner);
	} while (!CachedPlanIsValid(source));
}

static PpKeptPlan *
get_plan(PpStatement *s, int n, PpForm form)
{
	PpKeptPlan *kept = &s->plans[(n <= SMALL_BATCH ? 0 : 1) + 2 * (int) form];
	SPIPlanPtr plan;

	if (kept->spi != NULL)
	{
		if (s->pipeline->target == NULL || !pp_statement_is_current(s))
			lock_and_check(s, kept->spi, form);
		return kept;
	}
	plan = SPI_prepare(s->made->forms[form], 0, NULL);
	if (plan == NULL)
		elog(ERROR, "could not prepare the statement: %s", SPI_result_code_string(SPI_result));
	if (list_length(SPI_plan_get_plan_sources(plan)) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR), errmsg("a pipeline needs exactly one statement"),
				 errhint("Several changes fit into one statement with WITH.")));
	check_plan(s, plan, form, NULL);
	pp_run_keep(kept, plan, s->cxt);
	return kept;
}

/*
 * pp_statement_enter
 *		From here to pp_statement_leave() what is done is done as `role`, with settings under which values
 *		and texts mean the same everywhere.  After an error the caller's (sub)transaction abort leaves.
 */
void
pp_statement_enter(PpStatementScope *scope, Oid role, const char *search_path)
{
	GetUserIdAndSecContext(&scope->user, &scope->context);
	SetUserIdAndSecContext(role, scope->context | SECURITY_RESTRICTED_OPERATION);
	scope->nest = NewGUCNestLevel();
	pp_guc_set_for_call("search_path", search_path);
	pp_guc_set_styles_for_call();
}

void
pp_statement_leave(const PpStatementScope *scope)
{
	AtEOXact_GUC(false, scope->nest);
	SetUserIdAndSecContext(scope->user, scope->context);
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
	PpSteady started_at = s->started_at;

	s->started_at = (PpSteady){0};
	return pp_steady_is_set(started_at) && s->timeout_ms > 0 &&
		   pp_steady_passed(started_at, s->timeout_ms);
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
 *		connected, in this form, which there must be.  Returns of how many entries it is known that
 *		they met a row with their key.  Throws what the statement throws; the caller's (sub)transaction
 *		abort puts role and settings back.
 */
int
pp_statement_run(PpStatement *s, PpEntry **entries, int n, PpForm form)
{
	PpReturned returned;

	pp_returned_init(&returned);
	run(s, entries, n, form, &returned);
	if (form == PP_FORM_WHOLE && s->made->leaves_conflicts)
		return n - returned.num_rows;
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
	PpKeptPlan *kept;
	PpStatementScope scope;
	MemoryContext old;

	/* One that an aborted run left behind lives in run_cxt: away with it before the reset. */
	pp_batch_unregister();
	MemoryContextReset(s->run_cxt);
	old = MemoryContextSwitchTo(s->run_cxt);
	batch =
		pp_batch_register(s->desc, s->pipeline->stream, entries, n, n <= SMALL_BATCH ? FEW : MANY);

	pp_statement_enter(&scope, s->role, s->pipeline->target ? PP_SAFE_PATH : s->search_path);
	set_constraints_immediate();
	s->started_at = pp_steady_now();
	s->timeout_ms = s->own_timeout_ms < 0 ? StatementTimeout : s->own_timeout_ms;
	if (s->timeout_ms > 0)
		enable_timeout_after(STATEMENT_TIMEOUT, s->timeout_ms);

	kept = get_plan(s, n, form);
	s->over_entries = n > 0;
	pp_run_plan(kept, s->search_path, batch, form == PP_FORM_PLAIN && s->bulk, &returned->pub);
	s->over_entries = false;
	if (s->timeout_ms > 0)
		disable_timeout(STATEMENT_TIMEOUT, false);
	s->started_at = (PpSteady){0};
	pp_statement_leave(&scope);
	pp_batch_unregister();
	MemoryContextSwitchTo(old);
}
