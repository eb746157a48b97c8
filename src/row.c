/*
 * row.c
 *		Rows of the functions under the views, filled column by column.
 *
 * A string that is empty and a time that is 0 are unknown, and so NULL.
 */
#include "sqlfuncs.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

void
pp_row_put(PpRow *row, Datum value, bool null)
{
	row->values[row->n] = value;
	row->nulls[row->n++] = null;
}

void
pp_row_text(PpRow *row, const char *value)
{
	bool null = value == NULL || value[0] == '\0';

	pp_row_put(row, null ? (Datum) 0 : CStringGetTextDatum(value), null);
}

void
pp_row_texts(PpRow *row, List *strings)
{
	Datum *elems = palloc(Max(list_length(strings), 1) * sizeof(Datum));
	int n = 0;
	ListCell *lc;

	foreach (lc, strings)
		elems[n++] = CStringGetTextDatum((char *) lfirst(lc));
	pp_row_put(row, PointerGetDatum(construct_array(elems, n, TEXTOID, -1, false, TYPALIGN_INT)),
			   n == 0);
}

void
pp_row_time(PpRow *row, TimestampTz at)
{
	pp_row_put(row, TimestampTzGetDatum(at), at == 0);
}

void
pp_row_int8(PpRow *row, int64 value, bool null)
{
	pp_row_put(row, Int64GetDatum(value), null);
}

void
pp_row_float8(PpRow *row, double value, bool null)
{
	pp_row_put(row, Float8GetDatum(value), null);
}

void
pp_row_id(PpRow *row, PpId id, bool null)
{
	PpId *copy = palloc(sizeof(PpId));

	*copy = id;
	pp_row_put(row, PointerGetDatum(copy), null);
}

void
pp_row_emit(FunctionCallInfo fcinfo, PpRow *row)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	Assert(row->n == rsinfo->setDesc->natts);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row->values, row->nulls);
}

/*
 * pp_row_emit_result
 *		All rows of the query that SPI has run last; of its columns the first ones, those that the
 *		function has.
 */
void
pp_row_emit_result(FunctionCallInfo fcinfo)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		PpRow row;

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, row.values, row.nulls);
		row.n = ((ReturnSetInfo *) fcinfo->resultinfo)->setDesc->natts;
		pp_row_emit(fcinfo, &row);
	}
}
