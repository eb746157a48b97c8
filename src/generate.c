/*
 * generate.c
 *		The statement of a pipeline that has a target: made from the table's own columns.
 *
 * It is ordinary SQL that a user can read in postpipe_pipelines, change, and give back as his own
 * statement.  It relies on what the worker sets for every statement: TimeZone is UTC, so a
 * timestamp without zone is UTC.
 *
 * What each column takes is in generate_columns.c; what is absent takes the column's default.
 * What becomes of a row that is there is in generate_conflict.c.
 */
#include "generate_internal.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

/*
 * The columns of the primary key, in its order; NIL when there is none, or no row can conflict with
 * another because the server alone gives it its key.
 */
static List *
primary_key(Relation rel)
{
	List *indexes = RelationGetIndexList(rel); /* finds rd_pkindex, too */
	List *names = NIL;
	Relation index;
	bool made_here = false;

	list_free(indexes);
	if (!OidIsValid(rel->rd_pkindex))
		return NIL;
	index = index_open(rel->rd_pkindex, AccessShareLock);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
	{
		Form_pg_attribute att =
			TupleDescAttr(RelationGetDescr(rel), index->rd_index->indkey.values[i] - 1);

		made_here |= att->attidentity == ATTRIBUTE_IDENTITY_ALWAYS;
		names = lappend(names, pstrdup(NameStr(att->attname)));
	}
	index_close(index, AccessShareLock);
	return made_here ? NIL : names;
}

static void
check_key(const PpPipeline *p, Relation rel, List *key, List *columns)
{
	ListCell *lc;
	ListCell *lc2;

	foreach (lc, key)
	{
		bool found = false;

		foreach (lc2, columns)
			found |= strcmp(((PpColumn *) lfirst(lc2))->name, quote_identifier(lfirst(lc))) == 0;
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of pipeline \"%s\" is not a column of table \"%s\" "
							"that can be filled",
							(char *) lfirst(lc), p->name, RelationGetRelationName(rel))));
	}
}

/*
 * Is there a unique index that ON CONFLICT with this key would find?  *nulls_alike: rows whose key is
 * NULL conflict, too.  Throws when it would find one that it cannot use.
 */
static bool
find_arbiter(Relation rel, List *columns, bool *nulls_alike)
{
	List *indexes = RelationGetIndexList(rel);
	bool found = false;
	bool deferrable = false;
	Bitmapset *key = NULL;
	ListCell *lc;

	*nulls_alike = false;
	foreach (lc, columns)
		if (((PpColumn *) lfirst(lc))->is_key)
			key = bms_add_member(key, ((PpColumn *) lfirst(lc))->attnum);
	foreach (lc, indexes)
	{
		Relation index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;
		Bitmapset *attrs = NULL;

		for (int i = 0; i < form->indnkeyatts; i++)
			attrs = bms_add_member(attrs, Max(form->indkey.values[i], 0)); /* 0: an expression */
		if (form->indisunique && !form->indisexclusion && form->indisvalid &&
			heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) &&
			bms_equal(attrs, key))
		{
			found = true;
			deferrable |= !form->indimmediate;
			*nulls_alike |= form->indnullsnotdistinct;
		}
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
	if (deferrable)
		ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						errmsg("a unique constraint for the key of target \"%s\" is deferrable",
							   RelationGetRelationName(rel)),
						errdetail("ON CONFLICT cannot use it."),
						errhint("Make it NOT DEFERRABLE, or use on_conflict => 'error'.")));
	return found;
}

/* The key, as it can be seen in an entry; a list of PpKeyColumn. */
static List *
make_key(List *columns, bool nulls_alike)
{
	List *key = NIL;
	ListCell *lc;

	foreach (lc, columns)
	{
		const PpColumn *col = lfirst(lc);
		PpKeyColumn *column;

		if (!col->is_key)
			continue;
		column = palloc(sizeof(PpKeyColumn));
		column->sources = col->sources;
		column->empty_is_null = col->empty_is_null;
		column->absent_alike = col->default_value ? !col->default_varies : nulls_alike;
		key = lappend(key, column);
	}
	return key;
}

static const char *
table_name(Relation target)
{
	return quote_qualified_identifier(get_namespace_name(RelationGetNamespace(target)),
									  RelationGetRelationName(target));
}

static char *
make_insert(Relation target, List *columns)
{
	StringInfoData sql;
	int n = 0;
	ListCell *lc;

	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s AS t (", table_name(target));
	foreach (lc, columns)
		appendStringInfo(&sql, "%s%s", n++ > 0 ? ", " : "", ((PpColumn *) lfirst(lc))->name);
	appendStringInfoString(&sql, ")\nSELECT");
	n = 0;
	foreach (lc, columns)
	{
		appendStringInfoString(&sql, n++ > 0 ? ",\n    " : "\n    ");
		appendStringInfoString(&sql, pp_generate_inserted(lfirst(lc)));
	}
	appendStringInfoString(&sql, "\nFROM postpipe_batch b");
	return sql.data;
}

/* An insert with what becomes of rows that are there; see pp_generate_conflict(). */
static char *
make_upsert(const char *insert, const PpPipeline *p, List *columns, const char *newer,
			bool nulls_alike)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, insert);
	pp_generate_conflict(&sql, p, columns, newer, nulls_alike);
	return sql.data;
}

/* A partitioned table's rows have no system columns to tell an insert from an update. */
static bool
can_tell_inserted(Relation target)
{
	return target->rd_rel->relkind == RELKIND_RELATION;
}

/* The same, which tells which rows it did not insert, where that can be told. */
static char *
tell_inserted(const char *upsert, Relation target)
{
	if (!can_tell_inserted(target))
		return pstrdup(upsert);
	return psprintf("%s\nRETURNING (t.xmax = 0) AS inserted", upsert);
}

/* Does tell_inserted() tell of each row that was inserted?  A trigger may leave some out. */
static bool
returns_what_it_inserts(Relation target)
{
	return can_tell_inserted(target) &&
		   (target->trigdesc == NULL || !target->trigdesc->trig_insert_before_row);
}

static char *
show_rows(const char *sql)
{
	return psprintf("%s\nRETURNING t.*", sql);
}

/* Would a DELETE do more than that? */
static bool
delete_does_more(Relation target)
{
	const TriggerDesc *t = target->trigdesc;

	return target->rd_rel->relkind != RELKIND_RELATION || target->rd_rules != NULL ||
		   (t != NULL && (t->trig_delete_before_row || t->trig_delete_after_row ||
						  t->trig_delete_before_statement || t->trig_delete_after_statement));
}

static char *
make_delete(Relation target, List *columns)
{
	StringInfoData sql;
	int n = 0;
	ListCell *lc;

	if (delete_does_more(target))
		return NULL;
	initStringInfo(&sql);
	appendStringInfo(&sql, "DELETE FROM ONLY %s AS t USING postpipe_batch b WHERE ",
					 table_name(target));
	foreach (lc, columns)
	{
		const PpColumn *col = lfirst(lc);

		if (col->is_key)
			appendStringInfo(&sql, "%st.%s %s %s", n++ > 0 ? " AND " : "", col->name,
							 pp_generate_equal(col->type),
							 col->default_varies ? col->value : pp_generate_inserted(col));
	}
	return sql.data;
}

/* Does ON CONFLICT more, or allow less, than a plain INSERT even where nothing conflicts? */
static bool
upsert_does_more(Relation target)
{
	const TriggerDesc *t = target->trigdesc;

	return target->rd_rel->relrowsecurity || target->rd_rules != NULL ||
		   (t != NULL && (t->trig_update_before_statement || t->trig_update_after_statement));
}

/*
 * A query for the positions of the entries whose values cannot be converted to the columns' types,
 * where the server can tell without an error (pg_input_is_valid(), from 16 on); else, or when there
 * is nothing to convert, NULL.
 */
static char *
make_check(List *columns)
{
	Oid types[] = {TEXTOID, TEXTOID};
	StringInfoData sql;
	int n = 0;
	ListCell *lc;

	if (!OidIsValid(LookupFuncName(
			list_make2(makeString("pg_catalog"), makeString("pg_input_is_valid")), 2, types, true)))
		return NULL;
	initStringInfo(&sql);
	appendStringInfoString(&sql, "SELECT b.ord FROM postpipe_batch b\nWHERE NOT (");
	foreach (lc, columns)
	{
		PpColumn *col = lfirst(lc);

		if (col->valid != NULL)
			appendStringInfo(&sql, "%scoalesce(%s, true)", n++ > 0 ? "\n    AND " : "", col->valid);
	}
	appendStringInfoChar(&sql, ')');
	return n > 0 ? sql.data : NULL;
}

/*
 * pp_generate
 *		The statement for an open target, in the current memory context.  Throws when the definition
 *		does not fit the table.  Without an index for the key the whole form is made all the same, so
 *		that it fails when it is planned; but no plain one, which would add rows with a key that is
 *		there.
 */
PpGenerated *
pp_generate(const PpExtension *ext, const PpPipeline *definition, Relation target)
{
	PpPipeline adapted = *definition;
	const PpPipeline *p = &adapted;
	PpGenerated *g = palloc0(sizeof(PpGenerated));
	List *key = p->key != NIL ? p->key : primary_key(target);
	List *columns;
	char *insert;
	char *upsert;
	bool has_arbiter;
	bool nulls_alike;

	pp_posts_adapt(&adapted, target);
	columns = pp_generate_columns(p, target, key);
	insert = make_insert(target, columns);
	check_key(p, target, key, columns);
	g->forms[PP_FORM_CHECK] = make_check(columns);
	if (key != NIL)
		g->forms[PP_FORM_DELETE] = make_delete(target, columns);
	if (key == NIL || strcmp(p->on_conflict, "error") == 0)
	{
		g->forms[PP_FORM_WHOLE] = g->forms[PP_FORM_PLAIN] = insert;
		g->forms[PP_FORM_SHOW] = show_rows(insert);
		return g;
	}
	has_arbiter = find_arbiter(target, columns, &nulls_alike);
	upsert = make_upsert(insert, p, columns, pp_generate_newer(ext, p, columns), nulls_alike);
	g->forms[PP_FORM_WHOLE] = tell_inserted(upsert, target);
	g->leaves_conflicts = strcmp(p->on_conflict, "nothing") == 0 && returns_what_it_inserts(target);
	g->forms[PP_FORM_SHOW] = show_rows(upsert);
	if (has_arbiter && !upsert_does_more(target))
		g->forms[PP_FORM_PLAIN] = insert;
	if (strcmp(p->on_conflict, "update") == 0)
		g->forms[PP_FORM_OLDER] =
			tell_inserted(make_upsert(insert, p, columns, "false", nulls_alike), target);
	g->key = make_key(columns, nulls_alike);
	return g;
}
