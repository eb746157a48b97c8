/*
 * generate.c
 *		The statement of a pipeline that has a target: made from the table's own columns.
 *
 * It is ordinary SQL that a user can read in postpipe_pipelines, change, and give back as his own
 * statement.  It relies on what the worker sets for every statement: TimeZone is UTC, so a
 * timestamp without zone is UTC.
 *
 * Each column takes the first of its fields that is there; '' counts as absent where the column
 * is not text, or where the pipeline says so; what is absent takes the column's default.
 * On conflict with the key, each column is merged by its rule:
 *		replace		the newer value, also if it is absent
 *		keep		the newer value, or what was there if it is absent (the default rule)
 *		greatest	the greater one
 *		first		what was there
 *
 * A definition whose on_conflict is "older" (PP_ON_CONFLICT_OLDER; no user can say so) is for entries
 * that come after one of the same key that is newer: what they say never counts as newer.
 */
#include "pipeline.h"

#include "access/genam.h"
#include "access/htup_details.h"

#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "nodes/value.h"
#include "parser/parse_func.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

typedef struct Column
{
	const char *name; /* quoted */
	AttrNumber attnum;
	List *fields;
	const char *merge;
	bool empty_is_null;
	bool is_key;
	char *value;         /* expression for what the event has, NULL when absent */
	char *valid;         /* condition: it can be converted; NULL: always */
	char *default_value; /* expression, or NULL */
} Column;

/* The fields of an envelope; a column looks there when the event has no such field. */
static const char *const envelope_fields[] = {"event_type", "timestamp", "source", "dedup_key"};

/* columns->'name'->'key', or else columns->'*'->'key' */
static bool
find_rule(const Jsonb *columns, const char *name, const char *key, JsonbValue *value)
{
	const char *names[] = {name, "*"};

	for (int i = 0; columns != NULL && i < 2; i++)
	{
		JsonbValue rule;

		if (getKeyJsonValueFromContainer((JsonbContainer *) &columns->root, names[i],
										 (int) strlen(names[i]), &rule) &&
			rule.type == jbvBinary && JsonContainerIsObject(rule.val.binary.data) &&
			getKeyJsonValueFromContainer(rule.val.binary.data, key, (int) strlen(key), value))
			return true;
	}
	return false;
}

static char *
rule_text(const PpPipeline *p, const char *column, const char *key, const char *unset)
{
	JsonbValue value;

	if (!find_rule(p->columns, column, key, &value))
		return pstrdup(unset);
	if (value.type != jbvString)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("\"%s\" of column \"%s\" must be a string", key, column)));
	return pnstrdup(value.val.string.val, value.val.string.len);
}

/* The names of the event fields that a column is filled from, in order. */
static List *
rule_fields(const PpPipeline *p, const char *column)
{
	JsonbValue value;
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue item;
	List *fields = NIL;

	if (!find_rule(p->columns, column, "fields", &value))
		return list_make1(pstrdup(column));
	if (value.type == jbvBinary && JsonContainerIsArray(value.val.binary.data))
	{
		it = JsonbIteratorInit(value.val.binary.data);
		while ((token = JsonbIteratorNext(&it, &item, true)) != WJB_DONE)
			if (token == WJB_ELEM && item.type == jbvString)
				fields = lappend(fields, pnstrdup(item.val.string.val, item.val.string.len));
	}
	if (fields == NIL)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("\"fields\" of column \"%s\" must be an array of names", column)));
	return fields;
}

static bool
is_envelope_field(const char *field)
{
	for (int i = 0; i < lengthof(envelope_fields); i++)
		if (strcmp(envelope_fields[i], field) == 0)
			return true;
	return false;
}

/* Adds an alternative to a coalesce(). */
static void
add_alternative(StringInfo buf, int *n, bool nullif, const char *operand, const char *field)
{
	const char *quoted = quote_literal_cstr(field);

	appendStringInfo(buf, nullif ? "%snullif(b.%s ->> %s, '')" : "%sb.%s ->> %s",
					 (*n)++ > 0 ? ", " : "", operand, quoted);
}

/* What the event has for this column, as text; NULL when it is absent. */
static char *
text_expression(const Column *col)
{
	StringInfoData buf;
	int n = 0;
	ListCell *lc;

	initStringInfo(&buf);
	foreach (lc, col->fields)
	{
		if (strcmp(lfirst(lc), "$id") == 0)
			return pstrdup("b.id::text");
		add_alternative(&buf, &n, col->empty_is_null, "event", lfirst(lc));
	}
	foreach (lc, col->fields)
		if (is_envelope_field(lfirst(lc)))
			add_alternative(&buf, &n, col->empty_is_null, "envelope", lfirst(lc));
	if (n > 1)
		return psprintf("coalesce(%s)", buf.data);
	return col->empty_is_null ? buf.data : psprintf("(%s)", buf.data);
}

/* The same with the column's type. Text types are left to the assignment, which checks the length. */
static char *
typed_expression(Form_pg_attribute att, const char *text)
{
	Oid base = getBaseType(att->atttypid);
	Oid element = get_element_type(base);
	/* The base type: a cast of NULL to a domain that is NOT NULL would throw before the default. */
	char *type = format_type_be_qualified(base);

	if (base == TEXTOID || base == VARCHAROID || base == BPCHAROID)
		return pstrdup(text);
	if (OidIsValid(element))
		return psprintf(
			"CASE WHEN left(%s, 1) = '[' THEN "
			"ARRAY(SELECT jsonb_array_elements_text((%s)::jsonb))::%s ELSE (%s)::%s END",
			text, text, type, text, type);
	/* Cast to it directly, the offset in the text would be dropped without a word. */
	if (base == TIMESTAMPOID)
		return psprintf("(%s::timestamptz AT TIME ZONE 'UTC')", text);
	return psprintf("%s::%s", text, type);
}

/*
 * Can what the event has be converted?  NULL: no conversion can fail.  It may say no where the
 * statement would do: then an entry is looked at in vain.
 */
static char *
valid_expression(Form_pg_attribute att, const char *text)
{
	int32 typmod = att->atttypmod;
	Oid base = getBaseTypeAndTypmod(att->atttypid, &typmod);
	bool is_text = base == TEXTOID || base == VARCHAROID || base == BPCHAROID;
	char *check;

	if (is_text && typmod < 0)
		return NULL;
	if (base == TIMESTAMPOID)
		base = TIMESTAMPTZOID;
	check = psprintf("pg_input_is_valid(%s, %s)", text,
					 quote_literal_cstr(format_type_extended(
						 base, typmod, FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY)));
	if (OidIsValid(get_element_type(base)))
		return psprintf("(left(%s, 1) = '[' OR %s)", text, check);
	return check;
}

/* The column's default, its domain's, or the next value of its identity; NULL: none. */
static char *
default_expression(Relation rel, AttrNumber attnum)
{
	Node *expr = build_column_default(rel, attnum);

	if (expr == NULL)
		return NULL;
	return deparse_expression(
		expr, deparse_context_for(RelationGetRelationName(rel), RelationGetRelid(rel)), false,
		false);
}

static bool
in_list(List *names, const char *name)
{
	ListCell *lc;

	foreach (lc, names)
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	return false;
}

static Column *
make_column(const PpPipeline *p, Relation rel, Form_pg_attribute att, List *key)
{
	Column *col = palloc0(sizeof(Column));
	const char *name = NameStr(att->attname);
	Oid base = getBaseType(att->atttypid);
	bool is_text = base == TEXTOID || base == VARCHAROID || base == BPCHAROID;
	bool empty_null = strcmp(rule_text(p, name, "empty", "keep"), "null") == 0;

	col->name = quote_identifier(name);
	col->attnum = att->attnum;
	col->fields = rule_fields(p, name);
	col->merge = rule_text(p, name, "merge", "keep");
	col->is_key = in_list(key, name);
	if (strcmp(col->merge, "replace") != 0 && strcmp(col->merge, "keep") != 0 &&
		strcmp(col->merge, "greatest") != 0 && strcmp(col->merge, "first") != 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("invalid merge rule \"%s\" of column \"%s\"", col->merge, name),
						errhint("Valid rules are replace, keep, greatest and first.")));
	/* '' is a value of text; it is kept in a column that could not hold NULL in its place. */
	col->empty_is_null = !is_text || (empty_null && (col->is_key || !att->attnotnull));
	col->value = typed_expression(att, text_expression(col));
	col->valid = valid_expression(att, text_expression(col));
	col->default_value = default_expression(rel, att->attnum);
	return col;
}

/* The columns of the primary key, in its order; NIL when there is none. */
static List *
primary_key(Relation rel)
{
	List *indexes = RelationGetIndexList(rel); /* finds rd_pkindex, too */
	List *names = NIL;
	Relation index;

	list_free(indexes);
	if (!OidIsValid(rel->rd_pkindex))
		return NIL;
	index = index_open(rel->rd_pkindex, AccessShareLock);
	for (int i = 0; i < IndexRelationGetNumberOfKeyAttributes(index); i++)
		names = lappend(
			names, get_attname(RelationGetRelid(rel), index->rd_index->indkey.values[i], false));
	index_close(index, AccessShareLock);
	return names;
}

static void
set_for_deparse(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
							 false);
}

/*
 * All columns that a statement can fill.  Defaults are printed in the styles in which the statement
 * will be read, with all names qualified.
 */
static List *
make_columns(const PpPipeline *p, Relation rel, List *key)
{
	TupleDesc desc = RelationGetDescr(rel);
	List *columns = NIL;
	int nest = NewGUCNestLevel();

	set_for_deparse("search_path", "pg_catalog, pg_temp");
	set_for_deparse("DateStyle", "ISO, MDY");
	set_for_deparse("IntervalStyle", "postgres");
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && !att->attgenerated &&
			att->attidentity != ATTRIBUTE_IDENTITY_ALWAYS)
			columns = lappend(columns, make_column(p, rel, att, key));
	}
	AtEOXact_GUC(false, nest);
	return columns;
}

/* What is inserted: what the event has, or else the default. */
static char *
inserted_value(const Column *col)
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
		Column *col = lfirst(lc);

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

	if (strcmp(p->on_conflict, PP_ON_CONFLICT_OLDER) == 0)
		return pstrdup("false");
	if (strcmp(p->on_conflict, "newer") != 0)
		return NULL;
	foreach (lc, columns)
	{
		Column *col = lfirst(lc);
		const char *cast = "";

		if (p->newer_by == NULL || strcmp(col->name, quote_identifier(p->newer_by)) != 0)
			continue;
		if (strcmp(linitial(col->fields), "$id") == 0)
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
absent_condition(const Column *col, List *columns)
{
	return psprintf("(%s) IN (SELECT %s FROM postpipe_batch b WHERE %s IS NULL)",
					key_list(columns, "excluded."), key_list(columns, NULL), col->value);
}

/* The new value of a column when the key is there already. */
static char *
merged_value(const Column *col, List *columns, const char *newer)
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

static void
append_conflict_clause(StringInfo sql, const PpExtension *ext, const PpPipeline *p, List *columns)
{
	char *newer = newer_condition(ext, p, columns);
	bool all_replace = true;
	int n = 0;
	ListCell *lc;

	appendStringInfo(sql, "\nON CONFLICT (%s) DO ", key_list(columns, ""));
	foreach (lc, columns)
	{
		Column *col = lfirst(lc);

		all_replace &= col->is_key || strcmp(col->merge, "replace") == 0;
	}
	foreach (lc, columns)
	{
		Column *col = lfirst(lc);

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
			found |= strcmp(((Column *) lfirst(lc2))->name, quote_identifier(lfirst(lc))) == 0;
		if (!found)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("key column \"%s\" of pipeline \"%s\" is not a column of table \"%s\" "
							"that can be filled",
							(char *) lfirst(lc), p->name, RelationGetRelationName(rel))));
	}
}

/*
 * pp_generate_statement
 *		The statement for an open target.  *key_fields, if wanted, becomes a list with a list of
 *		field names for each column of the key; NIL when a row cannot conflict with another.
 *		*plain_insert, if wanted, becomes the same without ON CONFLICT, for rows that are all new.
 *		Throws when the definition does not fit the table.
 */
char *
pp_generate_statement(const PpExtension *ext, const PpPipeline *p, Relation target,
					  List **key_fields, char **plain_insert)
{
	List *key = p->key != NIL ? p->key : primary_key(target);
	List *columns = make_columns(p, target, key);
	bool conflicts = key != NIL && strcmp(p->on_conflict, "error") != 0;
	StringInfoData sql;
	int n = 0;
	ListCell *lc;

	check_key(p, target, key, columns);
	initStringInfo(&sql);
	appendStringInfo(&sql, "INSERT INTO %s AS t (",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(target)),
												RelationGetRelationName(target)));
	foreach (lc, columns)
		appendStringInfo(&sql, "%s%s", n++ > 0 ? ", " : "", ((Column *) lfirst(lc))->name);
	appendStringInfoString(&sql, ")\nSELECT");
	n = 0;
	foreach (lc, columns)
	{
		appendStringInfoString(&sql, n++ > 0 ? ",\n    " : "\n    ");
		appendStringInfoString(&sql, inserted_value(lfirst(lc)));
	}
	appendStringInfoString(&sql, "\nFROM postpipe_batch b");
	if (plain_insert != NULL)
		*plain_insert = pstrdup(sql.data);
	if (conflicts)
		append_conflict_clause(&sql, ext, p, columns);
	/* A partitioned table's rows have no system columns to tell an insert from an update. */
	if (conflicts && target->rd_rel->relkind == RELKIND_RELATION)
		appendStringInfoString(&sql, "\nRETURNING (t.xmax = 0) AS inserted");

	if (key_fields != NULL)
	{
		*key_fields = NIL;
		foreach (lc, columns)
			if (conflicts && ((Column *) lfirst(lc))->is_key)
				*key_fields = lappend(*key_fields, ((Column *) lfirst(lc))->fields);
	}
	return sql.data;
}

/*
 * pp_generate_check
 *		A query for the positions of the entries whose values cannot be converted to the columns'
 *		types, where the server can tell without an error (pg_input_is_valid(), from 16 on); else, or
 *		when there is nothing to convert, NULL.
 */
char *
pp_generate_check(const PpPipeline *p, Relation target)
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
	foreach (lc, make_columns(p, target, NIL))
	{
		Column *col = lfirst(lc);

		if (col->valid != NULL)
			appendStringInfo(&sql, "%scoalesce(%s, true)", n++ > 0 ? "\n    AND " : "", col->valid);
	}
	appendStringInfoChar(&sql, ')');
	return n > 0 ? sql.data : NULL;
}
