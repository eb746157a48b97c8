/*
 * batch_field.c
 *		Values of an entry's fields, as a statement asks for them.
 *
 * That is event ->> 'name', nullif() of it and '', the first of several of them (coalesce()), and such a
 * text cast to another type.  A text is the string where it is.  A value of another type is made from
 * the string by the type's input function, as COPY does, without a text in between (points in time of the
 * usual form by iso_timestamp.c).
 */
#include "batch_field.h"

#include "access/transam.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "nodes/nodeFuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "batch_relation.h"
#include "event_object.h"

/* event ->> 'name', or nullif(event ->> 'name', '') */
typedef struct Source
{
	PpBatchColumn object; /* event or envelope */
	const char *name;
	int len;
	bool empty_is_null;
	PpPlace place;
} Source;

struct PpField
{
	Node *expr;
	List *sources; /* the first that has a value counts */
	Oid type;
	FmgrInfo input; /* of a type that is not text */
	Oid ioparam;
};

/* event ->> 'name' or envelope ->> 'name'; NULL: it is something else. */
static Source *
make_source(Node *node, Index relid)
{
	OpExpr *op = (OpExpr *) node;
	Source *source;
	Var *object;
	Const *name;

	if (!IsA(node, OpExpr) || op->opfuncid != F_JSONB_OBJECT_FIELD_TEXT)
		return NULL;
	object = linitial(op->args);
	name = lsecond(op->args);
	if (!IsA(object, Var) || object->varno != relid ||
		(object->varattno != PP_BATCH_EVENT && object->varattno != PP_BATCH_ENVELOPE) ||
		!IsA(name, Const) || name->constisnull)
		return NULL;
	source = palloc0(sizeof(Source));
	source->object = object->varattno;
	source->name = VARDATA_ANY(DatumGetPointer(name->constvalue));
	source->len = (int) VARSIZE_ANY_EXHDR(DatumGetPointer(name->constvalue));
	return source;
}

/* nullif() of that and ''; NULL: it is something else. */
static Source *
make_source_or_null(Node *node, Index relid)
{
	NullIfExpr *nullif = (NullIfExpr *) node;
	Const *empty;
	Source *source;

	if (!IsA(node, NullIfExpr) || nullif->opfuncid != F_TEXTEQ ||
		!get_collation_isdeterministic(nullif->inputcollid))
		return NULL;
	empty = lsecond(nullif->args);
	if (!IsA(empty, Const) || empty->constisnull ||
		VARSIZE_ANY_EXHDR(DatumGetPointer(empty->constvalue)) > 0)
		return NULL;
	source = make_source(linitial(nullif->args), relid);
	if (source != NULL)
		source->empty_is_null = true;
	return source;
}

/* Adds the sources of a text, in their order.  False: it is of another form. */
static bool
add_sources(List **sources, Node *node, Index relid)
{
	Source *source;
	ListCell *lc;

	if ((source = make_source(node, relid)) != NULL ||
		(source = make_source_or_null(node, relid)) != NULL)
	{
		*sources = lappend(*sources, source);
		return true;
	}
	if (!IsA(node, CoalesceExpr))
		return false;
	foreach (lc, ((CoalesceExpr *) node)->args)
		if (!add_sources(sources, lfirst(lc), relid))
			return false;
	return true;
}

/*
 * pp_field_make
 *		The field that an expression over the scan's relation stands for, in the current memory context;
 *		NULL: it is of another form.  convert: it is evaluated for each row in any case, so a cast may
 *		throw.
 */
PpField *
pp_field_make(Node *expr, Index relid, bool convert)
{
	PpField *field = palloc0(sizeof(PpField));
	Node *text = expr;
	Oid input;

	field->expr = expr;
	field->type = TEXTOID;
	if (convert && IsA(expr, CoerceViaIO))
	{
		text = (Node *) ((CoerceViaIO *) expr)->arg;
		field->type = ((CoerceViaIO *) expr)->resulttype;
		getTypeInputInfo(field->type, &input, &field->ioparam);
		fmgr_info(input, &field->input);
		fmgr_info_set_expr(expr, &field->input);
		if (!field->input.fn_strict) /* NULL may be something else for it */
			return NULL;
	}
	return add_sources(&field->sources, text, relid) ? field : NULL;
}

/* The expression that it was made from. */
Node *
pp_field_expression(const PpField *field)
{
	return field->expr;
}

/* False: it is NULL.  in_text: the string is that of a text. */
static bool
find_text(PpField *field, const PpEntry *entry, PpString *text, bool *in_text)
{
	ListCell *lc;

	foreach (lc, field->sources)
	{
		Source *source = lfirst(lc);
		const PpObject *object = source->object == PP_BATCH_EVENT ? entry->event : entry->envelope;
		const PpPair *pair =
			object ? pp_object_find(object, source->name, source->len, &source->place) : NULL;

		if (pair == NULL || !pp_pair_text(pair, text) || (source->empty_is_null && text->len == 0))
			continue;
		*in_text = object->in_texts && pair->type == JENTRY_ISSTRING;
		return true;
	}
	return false;
}

/*
 * pp_field_value
 *		Its value in an entry, perhaps where it is there, perhaps in the current memory context.  Throws
 *		what a cast of it throws.
 */
Datum
pp_field_value(PpField *field, const PpEntry *entry, bool *isnull)
{
	PpString text;
	bool in_text;
	char *string;
	TimestampTz timestamp;

	*isnull = !find_text(field, entry, &text, &in_text);
	if (*isnull)
		return (Datum) 0;
	if (field->type == TEXTOID)
		return in_text ? PointerGetDatum(text.data - VARHDRSZ)
					   : PointerGetDatum(cstring_to_text_with_len(text.data, (int) text.len));
	/* Others than those of PostgreSQL might write into it. */
	string = in_text && field->input.fn_oid < FirstGenbkiObjectId ? unconstify(char *, text.data)
																  : pnstrdup(text.data, text.len);
	if (field->type == TIMESTAMPTZOID && pp_iso_timestamp(string, &timestamp))
		return TimestampTzGetDatum(timestamp);
	return InputFunctionCall(&field->input, string, field->ioparam, -1);
}
