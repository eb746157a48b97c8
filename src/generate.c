/*
 * generate.c
 *		The statement of a pipeline that has a target: made from the table's own columns.
 *
 * It is ordinary SQL that a user can read in postpipe_pipelines, change, and give back as his own
 * statement.  It relies on what the worker sets for every statement: TimeZone is UTC, so a
 * timestamp without zone is UTC.
 *
 * What each column takes is in generate_columns.c; what is absent takes the column's default.
 * On conflict with the key, each column is merged by its rule:
 *		replace		the newer value, also if it is absent
 *		keep		the newer value, or what was there if it is absent (the default rule)
 *		greatest	the greater one
 *		first		what was there
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

/* What is inserted: what the event has, or else the default. */
static char *
inserted_value(const PpColumn *col)
{
	if (col->default_value == NULL)
		return col->value;
	return psprintf("coalesce(%s, %s)", col->value, col->default_value);
}

/* "a, b" of the key's columns: their names with a prefix, or their expressions. */
static char *
key_list(List *columns, const char *prefix)
{
	StringInfoData buf;
	ListCell *lc;

	initStringInfo(&buf);
	foreach (lc, columns)
	{
		PpColumn *col = lfirst(lc);

		if (!col->is_key)
			continue;
		if (buf.len > 0)
			appendStringInfoString(&buf, ", ");
		if (prefix != NULL)
			appendStringInfo(&buf, "%s%s", prefix, col->name);
		else
			appendStringInfoString(&buf, inserted_value(col));
	}
	return buf.data;
}

/* "The new row is at least as new as the old one"; NULL when every row counts as newer. */
static char *
newer_condition(const PpExtension *ext, const PpPipeline *p, List *columns)
{
	ListCell *lc;

	if (strcmp(p->on_conflict, "newer") != 0)
		return NULL;
	foreach (lc, columns)
	{
		PpColumn *col = lfirst(lc);
		const char *cast = "";

		if (p->newer_by == NULL || strcmp(col->name, quote_identifier(p->newer_by)) != 0)
			continue;
		if (col->sources == NIL)
			cast = psprintf("::%s.postpipe_id", ext->schema_name);
		return psprintf("(t.%s IS NULL OR excluded.%s%s >= t.%s%s)", col->name, col->name, cast,
						col->name, cast);
	}
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
					errmsg("on_conflict newer needs newer_by to name a column of the target"),
					errhint("Set newer_by to the column that tells which row is newer.")));
	return NULL;
}

/*
 * Was the event silent about a column that has a default?  The default is in "excluded" then, and
 * must not replace what the row has; so the batch is asked.  The subquery is hashed, once per
 * statement and only when a row conflicts.
 */
static char *
absent_condition(const PpColumn *col, List *columns)
{
	return psprintf("(%s) IN (SELECT %s FROM postpipe_batch b WHERE %s IS NULL)",
					key_list(columns, "excluded."), key_list(columns, NULL), col->value);
}

/* The new value of a column when the key is there already. */
static char *
merged_value(const PpColumn *col, List *columns, const char *newer)
{
	const char *c = col->name;

	if (strcmp(col->merge, "greatest") == 0)
		return psprintf("greatest(t.%s, excluded.%s)", c, c);
	if (strcmp(col->merge, "replace") == 0)
		return newer ? psprintf("CASE WHEN %s THEN excluded.%s ELSE t.%s END", newer, c, c)
					 : psprintf("excluded.%s", c);
	if (col->default_value != NULL)
		return psprintf("CASE WHEN %s%s THEN t.%s ELSE excluded.%s END",
						newer ? psprintf("NOT %s AND t.%s IS NOT NULL OR ", newer, c) : "",
						absent_condition(col, columns), c, c);
	if (newer != NULL)
		return psprintf("CASE WHEN %s THEN coalesce(excluded.%s, t.%s) "
						"ELSE coalesce(t.%s, excluded.%s) END",
						newer, c, c, c, c);
	return psprintf("coalesce(excluded.%s, t.%s)", c, c);
}

/* `newer` is as of newer_condition(). */
static void
append_conflict_clause(StringInfo sql, const PpPipeline *p, List *columns, const char *newer)
{
	bool all_replace = true;
	int n = 0;
	ListCell *lc;

	appendStringInfo(sql, "\nON CONFLICT (%s) DO ", key_list(columns, ""));
	foreach (lc, columns)
	{
		PpColumn *col = lfirst(lc);

		all_replace &= col->is_key || strcmp(col->merge, "replace") == 0;
	}
	foreach (lc, columns)
	{
		PpColumn *col = lfirst(lc);

		if (col->is_key || strcmp(col->merge, "first") == 0 ||
			strcmp(p->on_conflict, "nothing") == 0)
			continue;
		appendStringInfo(sql, "%s%s = %s", n++ == 0 ? "UPDATE SET\n    " : ",\n    ", col->name,
						 merged_value(col, columns, all_replace ? NULL : newer));
	}
	if (n == 0)
		appendStringInfoString(sql, "NOTHING");
	else if (all_replace && newer != NULL)
		appendStringInfo(sql, "\nWHERE %s", newer);
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
 * NULL conflict, too.
 */
static bool
find_arbiter(Relation rel, List *columns, bool *nulls_alike)
{
	List *indexes = RelationGetIndexList(rel);
	bool found = false;
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
		if (form->indisunique && !form->indisexclusion && form->indisvalid && form->indimmediate &&
			heap_attisnull(index->rd_indextuple, Anum_pg_index_indpred, NULL) &&
			bms_equal(attrs, key))
		{
			found = true;
			*nulls_alike |= form->indnullsnotdistinct;
		}
		index_close(index, AccessShareLock);
	}
	list_free(indexes);
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
		appendStringInfoString(&sql, inserted_value(lfirst(lc)));
	}
	appendStringInfoString(&sql, "\nFROM postpipe_batch b");
	return sql.data;
}

/* An insert with what becomes of rows that are there; `newer` is as of newer_condition(). */
static char *
make_upsert(const char *insert, const PpPipeline *p, List *columns, const char *newer)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfoString(&sql, insert);
	append_conflict_clause(&sql, p, columns, newer);
	return sql.data;
}

/* The same, which tells which rows it did not insert, where that can be told. */
static char *
tell_inserted(const char *upsert, Relation target)
{
	/* A partitioned table's rows have no system columns to tell an insert from an update. */
	if (target->rd_rel->relkind != RELKIND_RELATION)
		return pstrdup(upsert);
	return psprintf("%s\nRETURNING (t.xmax = 0) AS inserted", upsert);
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
			appendStringInfo(&sql, "%st.%s = %s", n++ > 0 ? " AND " : "", col->name,
							 col->default_varies ? col->value : inserted_value(col));
	}
	return sql.data;
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
pp_generate(const PpExtension *ext, const PpPipeline *p, Relation target)
{
	PpGenerated *g = palloc0(sizeof(PpGenerated));
	List *key = p->key != NIL ? p->key : primary_key(target);
	List *columns = pp_generate_columns(p, target, key);
	char *insert = make_insert(target, columns);
	char *upsert;
	bool nulls_alike;

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
	upsert = make_upsert(insert, p, columns, newer_condition(ext, p, columns));
	g->forms[PP_FORM_WHOLE] = tell_inserted(upsert, target);
	g->forms[PP_FORM_SHOW] = show_rows(upsert);
	if (find_arbiter(target, columns, &nulls_alike))
		g->forms[PP_FORM_PLAIN] = insert;
	if (strcmp(p->on_conflict, "update") == 0)
		g->forms[PP_FORM_OLDER] = tell_inserted(make_upsert(insert, p, columns, "false"), target);
	g->key = make_key(columns, nulls_alike);
	return g;
}
