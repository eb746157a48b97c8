/*
 * generate_columns.c
 *		What a generated statement can fill: the columns of its target, each with the SQL expression
 *		for what an entry has for it.
 *
 * Each column takes the first of its fields that is there; '' counts as absent where the column
 * is not text, or where the pipeline says so.
 */
#include "generate_internal.h"

#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "catalog/pg_type.h"
#include "lib/stringinfo.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "rewrite/rewriteHandler.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"

#include "guc.h"

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

static PpSource *
make_source(const char *name, bool in_envelope)
{
	PpSource *source = palloc0(sizeof(PpSource));

	source->name = name;
	source->len = (int) strlen(name);
	source->in_envelope = in_envelope;
	return source;
}

/*
 * Where an entry has what a column takes: a list of PpSource, of which the first that is there
 * counts; NIL: it is the entry's ID.
 */
static List *
make_sources(List *fields)
{
	List *sources = NIL;
	ListCell *lc;

	foreach (lc, fields)
	{
		if (strcmp(lfirst(lc), "$id") == 0)
			return NIL;
		sources = lappend(sources, make_source(lfirst(lc), false));
	}
	foreach (lc, fields)
		if (is_envelope_field(lfirst(lc)))
			sources = lappend(sources, make_source(lfirst(lc), true));
	return sources;
}

/* What the event has for this column, as text; NULL when it is absent. */
static char *
text_expression(const PpColumn *col)
{
	StringInfoData buf;
	ListCell *lc;

	if (col->sources == NIL)
		return pstrdup("b.id::text");
	initStringInfo(&buf);
	foreach (lc, col->sources)
	{
		const PpSource *source = lfirst(lc);

		appendStringInfo(&buf, col->empty_is_null ? "%snullif(b.%s ->> %s, '')" : "%sb.%s ->> %s",
						 buf.len > 0 ? ", " : "", source->in_envelope ? "envelope" : "event",
						 quote_literal_cstr(source->name));
	}
	if (list_length(col->sources) > 1)
		return psprintf("coalesce(%s)", buf.data);
	return col->empty_is_null ? buf.data : psprintf("(%s)", buf.data);
}

/* Without a modifier (-1) no length either: "character" and "bit" mean one of 1. */
static char *
type_name(Oid type, int32 typmod)
{
	return format_type_extended(type, typmod,
								FORMAT_TYPE_TYPEMOD_GIVEN | FORMAT_TYPE_FORCE_QUALIFY);
}

/* The same with the column's type. Text types are left to the assignment, which checks the length. */
static char *
typed_expression(Form_pg_attribute att, const char *text)
{
	Oid base = getBaseType(att->atttypid);
	Oid element = get_element_type(base);
	/* The base type: a cast of NULL to a domain that is NOT NULL would throw before the default. */
	char *type = type_name(base, -1);

	if (base == TEXTOID || base == VARCHAROID || base == BPCHAROID)
		return pstrdup(text);
	/* Cast to timestamp directly, the offset in the text would be dropped without a word. */
	if (element == TIMESTAMPOID)
		type = psprintf("%s::%s", type_name(TIMESTAMPTZARRAYOID, -1), type);
	if (OidIsValid(element))
		return psprintf(
			"CASE WHEN left(%s, 1) = '[' THEN "
			"ARRAY(SELECT jsonb_array_elements_text((%s)::jsonb))::%s ELSE (%s)::%s END",
			text, text, type, text, type);
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
	check =
		psprintf("pg_input_is_valid(%s, %s)", text, quote_literal_cstr(type_name(base, typmod)));
	if (OidIsValid(get_element_type(base)))
		return psprintf("(left(%s, 1) = '[' OR %s)", text, check);
	return check;
}

/*
 * The column's default, its domain's, or the next value of its identity; NULL: none.  With the casts that an
 * assignment does by itself: it has to meet the event's value in one expression.
 */
static char *
deparse_default(Relation rel, Node *expr)
{
	if (expr == NULL)
		return NULL;
	return deparse_expression(
		expr, deparse_context_for(RelationGetRelationName(rel), RelationGetRelid(rel)), false,
		true);
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

static PpColumn *
make_column(const PpPipeline *p, Relation rel, Form_pg_attribute att, List *key)
{
	PpColumn *col = palloc0(sizeof(PpColumn));
	Node *default_expr = build_column_default(rel, att->attnum);
	const char *name = NameStr(att->attname);
	int32 typmod = att->atttypmod;
	Oid base = getBaseTypeAndTypmod(att->atttypid, &typmod);
	bool is_text = TypeCategory(base) == TYPCATEGORY_STRING;
	bool empty_null = strcmp(rule_text(p, name, "empty", "keep"), "null") == 0;

	col->name = quote_identifier(name);
	col->attnum = att->attnum;
	col->type = base;
	if (typmod >= 0 || base == BPCHAROID)
		col->assigned_type = type_name(base, typmod);
	col->sources = make_sources(rule_fields(p, name));
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
	col->default_value = deparse_default(rel, default_expr);
	col->default_varies = contain_volatile_functions(default_expr);
	return col;
}

/*
 * pp_generate_columns
 *		All columns that a statement can fill, a list of PpColumn.  Defaults are printed in the styles in
 *		which the statement will be read, with all names qualified.
 */
List *
pp_generate_columns(const PpPipeline *p, Relation rel, List *key)
{
	TupleDesc desc = RelationGetDescr(rel);
	List *columns = NIL;
	int nest = NewGUCNestLevel();

	pp_guc_set_for_call("search_path", PP_SAFE_PATH);
	pp_guc_set_styles_for_call();
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && !att->attgenerated &&
			att->attidentity != ATTRIBUTE_IDENTITY_ALWAYS)
			columns = lappend(columns, make_column(p, rel, att, key));
	}
	AtEOXact_GUC(false, nest);
	if (columns == NIL)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_COLUMN),
			 errmsg("target \"%s\" has no column that can be filled", RelationGetRelationName(rel)),
			 errdetail("The values of generated and GENERATED ALWAYS columns are the server's.")));
	return columns;
}
