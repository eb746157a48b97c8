/*
 * returned.c
 *		What a pipeline's statement returns: rows are counted or shown, and not kept.
 */
#include "returned.h"

#include "catalog/pg_type.h"
#include "executor/tuptable.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

static void
start_up(DestReceiver *self, int operation, TupleDesc desc)
{
	PpReturned *returned = (PpReturned *) self;

	returned->any = true;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (att->atttypid == BOOLOID && strcmp(NameStr(att->attname), "inserted") == 0)
			returned->inserted_column = i + 1;
	}
}

static void
show(StringInfo rows, TupleTableSlot *slot)
{
	Datum json;

	BlessTupleDesc(slot->tts_tupleDescriptor);
	json = DirectFunctionCall1(row_to_json, ExecFetchSlotHeapTupleDatum(slot));
	if (rows->len > 0)
		appendStringInfoChar(rows, ',');
	appendStringInfoString(rows, TextDatumGetCString(json));
}

static bool
receive(TupleTableSlot *slot, DestReceiver *self)
{
	PpReturned *returned = (PpReturned *) self;
	bool isnull;

	returned->num_rows++;
	if (returned->bad != NULL)
		returned->bad[DatumGetInt32(slot_getattr(slot, 1, &isnull)) - 1] = true;
	if (returned->inserted_column > 0)
	{
		Datum inserted = slot_getattr(slot, returned->inserted_column, &isnull);

		returned->not_inserted += !isnull && !DatumGetBool(inserted);
	}
	if (returned->rows != NULL)
		show(returned->rows, slot);
	return true;
}

static void
do_nothing(DestReceiver *self)
{
}

/* For one run of a statement. */
void
pp_returned_init(PpReturned *returned)
{
	memset(returned, 0, sizeof(*returned));
	returned->pub.receiveSlot = receive;
	returned->pub.rStartup = start_up;
	returned->pub.rShutdown = do_nothing;
	returned->pub.rDestroy = do_nothing;
	returned->pub.mydest = DestNone;
}
