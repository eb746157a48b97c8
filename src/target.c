/*
 * target.c
 *		The tables that a pipeline writes: may it, and can it be promised that what was acknowledged
 *		stays there?
 *
 * With a statement of the user these are the tables that its plan writes, not those that triggers and
 * functions write.  A table is looked at with all its partitions and children: a row may go there.
 */
#include "target.h"
#include "compat.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/varlena.h"

/* The table of a name as definitions have it, locked; InvalidOid, if that may be: there is none. */
Oid
pp_target_oid(const char *target, LOCKMODE lock, bool missing_ok)
{
	RangeVar *name = makeRangeVarFromNameList(textToQualifiedNameList(cstring_to_text(target)));

	return RangeVarGetRelid(name, lock, missing_ok);
}

/*
 * pp_target_open
 *		Opens the target table with this lock, and returns NULL when it does not exist.
 *		Names are stored qualified, so the search_path in force does not matter.
 */
Relation
pp_target_open(const PpPipeline *p, LOCKMODE lock)
{
	Oid oid = pp_target_oid(p->target, lock, true);

	return OidIsValid(oid) ? table_open(oid, NoLock) : NULL;
}

/* What is in no WAL of ours cannot be waited for before an XACK. */
static void
check_durable(const PpPipeline *p, Relation rel)
{
	char *name = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
											RelationGetRelationName(rel));
	bool foreign = rel->rd_rel->relkind == RELKIND_FOREIGN_TABLE;

	if ((!foreign && rel->rd_rel->relpersistence != RELPERSISTENCE_UNLOGGED) ||
		pp_pipeline_option_is_on(p, "allow_unlogged"))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("pipeline \"%s\" may not write %s table %s", p->name,
					foreign ? "foreign" : "unlogged", name),
			 foreign ? errdetail("It cannot be told when what is written there is durable.")
					 : errdetail("After a crash it would be empty, with every entry acknowledged."),
			 foreign
				 ? errhint("The option allow_unlogged accepts that.")
				 : errhint("ALTER TABLE %s SET LOGGED, or set the option allow_unlogged.", name)));
}

/*
 * What acts as a superuser must not write where another role's triggers, defaults or index
 * expressions would run with a superuser's rights: tables that a statement names, or parts of a target.
 */
static void
check_owner(const PpPipeline *p, Oid role, Relation rel)
{
	Oid owner = rel->rd_rel->relowner;

	if (owner == role || !superuser_arg(role) || superuser_arg(owner))
		return;
	ereport(
		ERROR,
		(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
		 errmsg("pipeline \"%s\" may not write table \"%s\" of role \"%s\" as superuser \"%s\"",
				p->name, RelationGetRelationName(rel), GetUserNameFromId(owner, true),
				GetUserNameFromId(role, true)),
		 errdetail("Triggers of the table would run with a superuser's rights."),
		 p->target
			 ? errhint("Change the owner of the table, or that of %s.", p->target)
			 : errhint("Give the pipeline to \"%s\": postpipe_create_pipeline(..., owner => '%s').",
					   GetUserNameFromId(owner, true), GetUserNameFromId(owner, true))));
}

/*
 * pp_target_check_written
 *		Throws unless the pipeline, which acts as `role`, may write this table and all parts of it.
 */
void
pp_target_check_written(const PpPipeline *p, Oid role, Oid relid)
{
	ListCell *lc;

	foreach (lc, find_all_inheritors(relid, AccessShareLock, NULL))
	{
		Relation rel = table_open(lfirst_oid(lc), NoLock);

		check_durable(p, rel);
		check_owner(p, role, rel);
		table_close(rel, NoLock);
	}
}

/* Throws when a table of ours would be empty after a crash.  Asked for each batch: two look-ups in a cache each. */
void
pp_target_check_own(const PpExtension *ext)
{
	static const char *const tables[] = {"postpipe_ledger",     "postpipe_epoch",
										 "postpipe_progress",   "postpipe_dead_letter",
										 "postpipe_lost_range", "postpipe_ingested"};

	for (int i = 0; i < lengthof(tables); i++)
	{
		Oid relid = get_relname_relid(tables[i], ext->schema);

		if (OidIsValid(relid) && get_rel_persistence(relid) != RELPERSISTENCE_PERMANENT)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("table %s.%s is unlogged", ext->schema_name, tables[i]),
					 errdetail("After a crash it would be empty, with every entry acknowledged."),
					 errhint("ALTER TABLE %s.%s SET LOGGED.", ext->schema_name, tables[i])));
	}
}

/* Throws unless the target is a table that we can promise something about. */
void
pp_target_check(const PpPipeline *p, Relation rel)
{
	Oid owner = rel->rd_rel->relowner;

	if (rel->rd_rel->relkind != RELKIND_RELATION &&
		rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR, (errcode(ERRCODE_WRONG_OBJECT_TYPE),
						errmsg("target %s of pipeline \"%s\" is not a table", p->target, p->name),
						errhint("Give the pipeline a statement instead of a target.")));
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("target %s of pipeline \"%s\" is a temporary table", p->target, p->name),
				 errdetail("A worker does not see the tables of a session.")));
	pp_target_check_written(p, owner, RelationGetRelid(rel));
	if (!pp_can_set_role(p->owner, owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("owner \"%s\" of pipeline \"%s\" may not act as \"%s\", the owner of %s",
						GetUserNameFromId(p->owner, true), p->name, GetUserNameFromId(owner, true),
						p->target),
				 errhint("GRANT %s TO %s, or change the owner of one of them.",
						 quote_identifier(GetUserNameFromId(owner, true)),
						 quote_identifier(GetUserNameFromId(p->owner, true)))));
}
