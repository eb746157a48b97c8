/*
 * statement.c
 *		A pipeline's statement: made for the database as it is now, and made again when that has changed.
 *
 * It is run by statement_run.c.
 */
#include "statement_internal.h"

#include "access/table.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timeout.h"

#include "batch_relation.h"
#include "bulk_insert.h"
#include "shmem.h"
#include "store.h"
#include "target.h"

/*
 * Counted by invalidation: look at the definition again.  It is not only the target that counts: a statement
 * has the names of sequences, functions, types and schemas in it, and rows may wait or not depending on
 * what the checks of a domain are.
 */
static uint64 catalog_changes = 1;

static void
relation_changed(Datum arg, Oid relid)
{
	catalog_changes++;
}

static void
catalog_changed(Datum arg, int cache_id, uint32 hash)
{
	catalog_changes++;
}

static void
watch_catalogs(void)
{
	/* With roles, who may act as whom, and who is a superuser. */
	static const int caches[] = {TYPEOID,      CONSTROID, PROCOID,
								 NAMESPACEOID, AUTHOID,   AUTHMEMMEMROLE};
	static bool watched = false;

	if (watched)
		return;
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
	for (int i = 0; i < lengthof(caches); i++)
		CacheRegisterSyscacheCallback(caches[i], catalog_changed, (Datum) 0);
	watched = true;
}

/*
 * The path of the pipeline.  In a backend the temporary objects are those of whoever has called a function, who may be
 * another role than that of the statement: they are found last, and not first, as where the path does not name them.
 */
static char *
make_search_path(const PpPipeline *p)
{
	if (pp_my_proc != NULL)
		return pstrdup(p->search_path);
	return psprintf("%s%spg_temp", p->search_path, p->search_path[0] == '\0' ? "" : ", ");
}

/*
 * pp_statement_create
 *		For one pipeline, living in `cxt`.  Needs a transaction.
 */
PpStatement *
pp_statement_create(MemoryContext cxt, const PpExtension *ext, PpPipeline *pipeline)
{
	MemoryContext old = MemoryContextSwitchTo(cxt);
	PpStatement *s = palloc0(sizeof(PpStatement));

	s->cxt = cxt;
	s->run_cxt = AllocSetContextCreate(cxt, "postpipe statement run", PP_BATCH_CONTEXT_SIZES);
	s->ext = ext;
	s->pipeline = pipeline;
	s->search_path = make_search_path(pipeline);
	s->desc = pp_batch_descriptor(ext);
	/* In a background worker nobody else arms it; in a backend the session has its own. */
	if (pp_my_proc != NULL && !get_timeout_active(STATEMENT_TIMEOUT))
		s->own_timeout_ms = pp_pipeline_option_ms(pipeline, "statement_timeout", -1);
	MemoryContextSwitchTo(old);
	watch_catalogs();
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
	for (int i = 0; i < PP_PLANS; i++)
		pp_run_forget(&s->plans[i]);
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
 * gone.  That there was one is on record, for other processes and later ones.
 */
static void
check_key_is_there(const PpStatement *s, const PpGenerated *made)
{
	if (made->key != NIL || s->pipeline->key != NIL ||
		((s->made == NULL || s->made->key == NIL) &&
		 !pp_store_progress_has(s->ext, s->pipeline->name, "keyed")))
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
	PpStatementScope scope;
	PpGenerated *made;
	Relation rel;

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
	/* Functions of the table's owner may be called, such as those in the check of a domain. */
	pp_statement_enter(&scope, rel->rd_rel->relowner, s->search_path);
	made = pp_generate(s->ext, s->pipeline, rel);
	check_key_is_there(s, made);
	s->bulk = pp_bulk_insert_allowed(rel);
	pp_statement_leave(&scope);
	take_over(s, cxt, made, rel->rd_rel->relowner, RelationGetRelid(rel));
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
	uint64 changes;

	/*
	 * First the lock that the run takes, because waiting for it is when the table changes: an index
	 * that is gone since must be missed before the plain form is chosen, which does not need it.
	 */
	if (OidIsValid(s->target))
		LockRelationOid(s->target, RowExclusiveLock);
	pp_target_check_own(s->ext);
	changes = catalog_changes; /* of what comes meanwhile it may have seen nothing */
	if (s->catalog_changes == changes)
		return;
	check_owner(s);
	cxt = AllocSetContextCreate(CurrentMemoryContext, "postpipe statement", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(cxt);
	if (s->pipeline->target == NULL)
		make_own(s, cxt);
	else
		make_for_target(s, cxt);
	s->catalog_changes = changes;
	MemoryContextSwitchTo(old);
}

/* Has nothing changed since pp_statement_prepare(), as far as is known? */
bool
pp_statement_is_current(const PpStatement *s)
{
	return s->catalog_changes == catalog_changes;
}

/* Frees the kept plans of a statement that is not needed any more. */
void
pp_statement_destroy(PpStatement *s)
{
	forget_plans(s);
}

/* The target's key, PpKeyColumn; NIL: no row can conflict with another, or we do not know. */
List *
pp_statement_key(const PpStatement *s)
{
	return s->made->key;
}

/*
 * pp_statement_note_key
 *		Puts on record that rows are merged by the target's primary key.  By a worker, when it begins.
 */
void
pp_statement_note_key(const PpStatement *s)
{
	if (s->target != InvalidOid && s->pipeline->key == NIL && s->made->key != NIL)
		pp_store_note_progress(s->ext, s->pipeline->name, "keyed");
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
