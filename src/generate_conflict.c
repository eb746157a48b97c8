/*
 * generate_conflict.c
 *		What a generated statement does with a row that is there: its ON CONFLICT clause.
 *
 * Each column is merged by its rule:
 *		replace		the newer value, also if it is absent
 *		keep		the newer value, or what was there if it is absent (the default rule)
 *		greatest	the greater one
 *		first		what was there
 *
 * The statement is parsed where only pg_catalog is searched, so an operator of another schema is written
 * with that.
 */
#include "generate_internal.h"

#include "access/htup_details.h"
#include "access/stratnum.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_operator.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

/* What is inserted: what the event has, or else the default. */
char *
pp_generate_inserted(const PpColumn *col)
{
	if (col->default_value == NULL)
		return col->value;
	return psprintf("coalesce(%s, %s)", col->value, col->default_value);
}

/* A value of the key as it is in the table: rounded, or padded with blanks. */
static char *
assigned_value(const PpColumn *col)
{
	if (col->assigned_type == NULL)
		return pp_generate_inserted(col);
	return psprintf("(%s)::%s", pp_generate_inserted(col), col->assigned_type);
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
			appendStringInfoString(&buf, assigned_value(col));
	}
	return buf.data;
}

/* Of an operator by which values of a type are compared; NULL: in pg_catalog, or there is none. */
static char *
operator_schema(Oid operator)
{
	HeapTuple tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Oid schema = PG_CATALOG_NAMESPACE;

	if (HeapTupleIsValid(tuple))
	{
		schema = ((Form_pg_operator) GETSTRUCT(tuple))->oprnamespace;
		ReleaseSysCache(tuple);
	}
	return schema == PG_CATALOG_NAMESPACE ? NULL : get_namespace_name(schema);
}

static char *
equality_schema(Oid type)
{
	return operator_schema(lookup_type_cache(type, TYPECACHE_EQ_OPR)->eq_opr);
}

/*
 * The operator as it is written where only pg_catalog is searched.  Its name is that of all types, or
 * the merge would not have been written like this.
 */
static char *
written(const char *name, const char *schema)
{
	return schema ? psprintf("OPERATOR(%s.%s)", quote_identifier(schema), name) : pstrdup(name);
}

/* The operator "=" of a type. */
char *
pp_generate_equal(Oid type)
{
	return written("=", equality_schema(type));
}

static char *
at_least(Oid type)
{
	TypeCacheEntry *t = lookup_type_cache(type, TYPECACHE_BTREE_OPFAMILY);
	Oid opno = InvalidOid;

	if (OidIsValid(t->btree_opf))
		opno = get_opfamily_member(t->btree_opf, t->btree_opintype, t->btree_opintype,
								   BTGreaterEqualStrategyNumber);
	return written(">=", operator_schema(opno));
}

/*
 * pp_generate_newer
 *		"The new row is at least as new as the old one"; NULL when every row counts as newer.
 */
char *
pp_generate_newer(const PpExtension *ext, const PpPipeline *p, List *columns)
{
	ListCell *lc;

	if (strcmp(p->on_conflict, "newer") != 0)
		return NULL;
	foreach (lc, columns)
	{
		PpColumn *col = lfirst(lc);
		const char *cast = "";
		Oid type = col->type;

		if (p->newer_by == NULL || strcmp(col->name, quote_identifier(p->newer_by)) != 0)
			continue;
		if (col->sources == NIL)
		{
			cast = psprintf("::%s.postpipe_id", ext->schema_name);
			type = pp_id_type_oid(ext);
		}
		return psprintf("(t.%s IS NULL OR excluded.%s%s %s t.%s%s)", col->name, col->name, cast,
						at_least(type), col->name, cast);
	}
	ereport(ERROR, (errcode(ERRCODE_UNDEFINED_COLUMN),
					errmsg("on_conflict newer needs newer_by to name a column of the target"),
					errhint("Set newer_by to the column that tells which row is newer.")));
	return NULL;
}

/* The schema of the operators that compare the columns of the key, NULL for pg_catalog; false: there are several. */
static bool
key_operator_schema(List *columns, const char **schema)
{
	bool first = true;
	ListCell *lc;

	foreach (lc, columns)
	{
		const PpColumn *col = lfirst(lc);
		const char *this = equality_schema(col->type);

		if (!col->is_key)
			continue;
		if (!first && strcmp(this ? this : "", *schema ? *schema : "") != 0)
			return false;
		*schema = this;
		first = false;
	}
	return true;
}

/*
 * Was the event silent about a column that has a default?  The default is in "excluded" then, and
 * must not replace what the row has; so the batch is asked.  The subquery is hashed, once per
 * statement and only when a row conflicts, if one operator can compare all of the key.
 */
static char *
absent_condition(const PpColumn *col, List *columns, bool nulls_alike)
{
	const char *schema = NULL;
	StringInfoData sql;
	ListCell *lc;

	if (!nulls_alike && key_operator_schema(columns, &schema))
		return psprintf("(%s) %s (SELECT %s FROM postpipe_batch b WHERE %s IS NULL)",
						key_list(columns, "excluded."),
						schema ? psprintf("%s ANY", written("=", schema)) : "IN",
						key_list(columns, NULL), col->value);
	initStringInfo(&sql);
	appendStringInfo(&sql, "EXISTS (SELECT FROM postpipe_batch b WHERE %s IS NULL", col->value);
	foreach (lc, columns)
	{
		const PpColumn *key = lfirst(lc);
		char *value = assigned_value(key);

		if (!key->is_key)
			continue;
		appendStringInfo(&sql, " AND (excluded.%s %s %s", key->name, pp_generate_equal(key->type),
						 value);
		if (nulls_alike)
			appendStringInfo(&sql, " OR excluded.%s IS NULL AND %s IS NULL", key->name, value);
		appendStringInfoChar(&sql, ')');
	}
	appendStringInfoChar(&sql, ')');
	return sql.data;
}

/* The new value of a column when the key is there already. */
static char *
merged_value(const PpColumn *col, List *columns, const char *newer, bool nulls_alike)
{
	const char *c = col->name;

	if (strcmp(col->merge, "greatest") == 0)
		return psprintf("greatest(t.%s, excluded.%s)", c, c);
	if (strcmp(col->merge, "replace") == 0)
		return newer ? psprintf("CASE WHEN %s THEN excluded.%s ELSE t.%s END", newer, c, c)
					 : psprintf("excluded.%s", c);
	if (col->default_value != NULL)
		return psprintf("CASE WHEN %s%s THEN t.%s ELSE excluded.%s END",
						newer ? psprintf("%s IS NOT TRUE AND t.%s IS NOT NULL OR ", newer, c) : "",
						absent_condition(col, columns, nulls_alike), c, c);
	if (newer != NULL)
		return psprintf("CASE WHEN %s THEN coalesce(excluded.%s, t.%s) "
						"ELSE coalesce(t.%s, excluded.%s) END",
						newer, c, c, c, c);
	return psprintf("coalesce(excluded.%s, t.%s)", c, c);
}

/*
 * pp_generate_conflict
 *		The clause, to be appended to the INSERT.  `newer` is as of pp_generate_newer(); nulls_alike: rows
 *		whose key is NULL conflict, too.
 */
void
pp_generate_conflict(StringInfo sql, const PpPipeline *p, List *columns, const char *newer,
					 bool nulls_alike)
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
						 merged_value(col, columns, all_replace ? NULL : newer, nulls_alike));
	}
	if (n == 0)
		appendStringInfoString(sql, "NOTHING");
	else if (all_replace && newer != NULL)
		appendStringInfo(sql, "\nWHERE %s", newer);
}
