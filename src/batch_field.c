/*
 * batch_field.c
 *		Values of an entry's fields, as a statement asks for them.
 *
 * That is event ->> 'name', nullif() of it and '', the first of several of them (coalesce()), and such a
 * text cast to another type.  A text is the string where it is.  A value of another type is made from
 * the string by the type's input function, as COPY does, without a text in between (points in time of the
 * usual form by iso_timestamp.c, arrays in JSON by event_json.c).
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
#include "event_internal.h"

/* event ->> 'name', or nullif(event ->> 'name', '') */
typedef struct FieldSource
{
	PpSource source;
	bool empty_is_null;
} FieldSource;

struct PpField
{
	Node *expr;
	List *sources; /* FieldSource, of which the first that has a value counts */
	Oid type;
	Oid input_function; /* of a type that is not text; else invalid */
	Oid ioparam;
	FmgrInfo input;       /* … as a run has looked it up */
	bool input_keeps_off; /* it neither writes into a string nor keeps it */
};

#define SHORT_STRING 64 /* most of what is not text has fewer bytes */

/* A text that is written in the statement.  False: it is something else. */
static bool
is_constant(const Node *node, PpString *text)
{
	const Const *constant = (const Const *) node;

	if (!IsA(node, Const) || constant->constisnull)
		return false;
	*text = (PpString){VARDATA_ANY(DatumGetPointer(constant->constvalue)),
					   VARSIZE_ANY_EXHDR(DatumGetPointer(constant->constvalue))};
	return true;
}

/* nullif() of something and '' */
static bool
is_nullif_empty(const Node *node)
{
	const NullIfExpr *nullif = (const NullIfExpr *) node;
	PpString empty;

	return IsA(node, NullIfExpr) && nullif->opfuncid == F_TEXTEQ &&
		   get_collation_isdeterministic(nullif->inputcollid) &&
		   is_constant(lsecond(nullif->args), &empty) && empty.len == 0;
}

/* event ->> 'name' or envelope ->> 'name', or nullif() of that and ''; NULL: it is something else. */
static FieldSource *
make_source(Node *node, Index relid)
{
	bool empty_is_null = is_nullif_empty(node);
	OpExpr *op = empty_is_null ? linitial(((NullIfExpr *) node)->args) : (OpExpr *) node;
	FieldSource *made;
	Var *object;
	PpString name;

	if (!IsA(op, OpExpr) || op->opfuncid != F_JSONB_OBJECT_FIELD_TEXT)
		return NULL;
	object = linitial(op->args);
	if (!IsA(object, Var) || object->varno != relid ||
		(object->varattno != PP_BATCH_EVENT && object->varattno != PP_BATCH_ENVELOPE) ||
		!is_constant(lsecond(op->args), &name))
		return NULL;
	made = palloc0(sizeof(FieldSource));
	made->source.name = name.data;
	made->source.len = (int) name.len;
	made->source.in_envelope = object->varattno == PP_BATCH_ENVELOPE;
	made->empty_is_null = empty_is_null;
	return made;
}

/* Adds the sources of a text, in their order.  False: it is of another form. */
static bool
add_sources(List **sources, Node *node, Index relid)
{
	FieldSource *source = make_source(node, relid);
	ListCell *lc;

	if (source != NULL)
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

/* Does its input function leave the string as it is and keep no part of it?  Those of PostgreSQL itself do. */
static bool
input_keeps_off(Oid type)
{
	Oid input;
	Oid ioparam;

	getTypeInputInfo(getBaseType(type), &input, &ioparam);
	return input < FirstGenbkiObjectId;
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
	bool is_cast = convert && IsA(expr, CoerceViaIO);
	List *sources = NIL;
	PpField *field;

	if (!add_sources(&sources, is_cast ? (Node *) ((CoerceViaIO *) expr)->arg : expr, relid))
		return NULL;
	field = palloc0(sizeof(PpField));
	field->expr = expr;
	field->sources = sources;
	field->type = exprType(expr);
	if (is_cast)
	{
		getTypeInputInfo(field->type, &field->input_function, &field->ioparam);
		if (!func_strict(field->input_function)) /* NULL may be something else for it */
			return NULL;
		field->input_keeps_off = input_keeps_off(field->type);
	}
	return field;
}

/*
 * pp_field_begin
 *		Before a run takes values of it.  What its input function keeps from call to call lives as long as the
 *		current memory context, that of the run: functions that it calls may be other ones in the next.
 */
void
pp_field_begin(PpField *field)
{
	if (!OidIsValid(field->input_function))
		return;
	fmgr_info(field->input_function, &field->input);
	fmgr_info_set_expr(field->expr, &field->input);
}

/* The expression that it was made from. */
Node *
pp_field_expression(const PpField *field)
{
	return field->expr;
}

/* What it takes its value from; NULL: it is NULL.  *in_text: the string is that of a text. */
static const PpPair *
find_pair(PpField *field, const PpEntry *entry, bool *in_text)
{
	ListCell *lc;

	foreach (lc, field->sources)
	{
		FieldSource *source = lfirst(lc);
		const PpPair *pair = pp_source_find(&source->source, entry, source->empty_is_null, in_text);

		if (pair != NULL)
			return pair;
	}
	return NULL;
}

/* What is jsonb already, or mostly is an array in a string; NULL: jsonb_in() has to look at it. */
static Jsonb *
make_jsonb(const PpPair *pair)
{
	Jsonb *jb;

	if (pair->type == JENTRY_ISSTRING)
		return pp_json_parse_array(pair->value.data, pair->value.len);
	if (pair->type != JENTRY_ISCONTAINER)
		return NULL;
	jb = palloc(VARHDRSZ + pair->value.len);
	SET_VARSIZE(jb, VARHDRSZ + pair->value.len);
	memcpy(VARDATA(jb), pair->value.data, pair->value.len);
	return jb;
}

/* The text with a zero behind it: where it is, in `room`, or in the current memory context. */
static char *
terminated(const PpField *field, const PpString *text, bool in_text, char room[SHORT_STRING])
{
	if (!field->input_keeps_off || (!in_text && text->len >= SHORT_STRING))
		return pnstrdup(text->data, text->len);
	if (in_text)
		return unconstify(char *, text->data);
	memcpy(room, text->data, text->len);
	room[text->len] = '\0';
	return room;
}

/*
 * pp_field_value
 *		Its value in an entry, perhaps where it is there, perhaps in the current memory context.  Throws
 *		what a cast of it throws.
 */
Datum
pp_field_value(PpField *field, const PpEntry *entry, bool *isnull)
{
	bool in_text;
	const PpPair *pair = find_pair(field, entry, &in_text);
	PpString text;
	char room[SHORT_STRING];
	char *string;
	Jsonb *jb;
	TimestampTz timestamp;

	*isnull = pair == NULL;
	if (pair == NULL)
		return (Datum) 0;
	if (field->type == JSONBOID && (jb = make_jsonb(pair)) != NULL)
		return JsonbPGetDatum(jb);
	text = pp_pair_text(pair);
	if (field->type == TEXTOID)
		return in_text ? PointerGetDatum(text.data - VARHDRSZ)
					   : PointerGetDatum(cstring_to_text_with_len(text.data, (int) text.len));
	string = terminated(field, &text, in_text, room);
	if (field->type == TIMESTAMPTZOID && pp_iso_timestamp(string, &timestamp))
		return TimestampTzGetDatum(timestamp);
	return InputFunctionCall(&field->input, string, field->ioparam, -1);
}
