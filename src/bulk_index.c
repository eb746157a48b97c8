/*
 * bulk_index.c
 *		Index entries of many new rows, index by index and in the order of the keys.
 *
 * The executor's way is row by row, each row into all indexes: with keys in no order, that touches
 * another leaf page each time, far away in memory.  In the order of the keys the next one is mostly
 * found where the last one was, on the same page or nearby, and the upper pages of one index stay in
 * the processor's cache.  The order need not be that of the index, it is a matter of speed alone: so
 * keys are compared by their bytes, without asking a type or a collation.
 *
 * Indexes that need more than an entry (of a part of the rows, of an exclusion constraint, checked
 * later) are left to the executor, with all others of their table.
 */
#include "bulk_index.h"

#include "access/genam.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "executor/instrument.h"
#include "nodes/nodeFuncs.h"
#include "port/pg_bswap.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "compat.h"
#include "index_ahead.h"

#define SORT_COLUMNS 2  /* of a key that are compared: a third one would seldom matter */
#define FEW_ENTRIES  10 /* show whether pages are missing … */
#define MISSING_PART 8  /* … which they are when more than one of so many had to read one */

/* A value, as far as it is compared. */
typedef struct SortValue
{
	const char *bytes; /* NULL: it is the number */
	uint64 number;     /* or how many bytes there are */
} SortValue;

/* The entry of one row. */
typedef struct Entry
{
	SortValue sort[SORT_COLUMNS];
	ItemPointerData row;
	Datum *values;
	bool *nulls;
} Entry;

/* How the values of a column are passed, which need not be how the index keeps them. */
typedef struct ColumnType
{
	int16 len;
	bool byval;
} ColumnType;

/* An entry to be sorted, with the first bytes of its key: mostly they decide. */
typedef struct Place
{
	uint64 prefix;
	Entry *entry;
} Place;

struct PpBulkIndex
{
	MemoryContext cxt; /* of all this and what the entries point to */
	ResultRelInfo *target;
	EState *estate;
	bool plain;           /* all indexes take an entry of each row, and say at once what is wrong */
	int max_rows;         /* that may wait */
	int n;                /* rows that wait */
	Entry **entries;      /* of each index */
	ColumnType **types;   /* of each index, by column */
	PpIndexAhead **ahead; /* of each index, NULL for none */
	Place *places;        /* room to sort them */
};

static bool
is_plain(Relation index, const IndexInfo *info)
{
	return info->ii_ReadyForInserts && info->ii_Predicate == NIL && info->ii_ExclusionOps == NULL &&
		   (!index->rd_index->indisunique || index->rd_index->indimmediate);
}

static ColumnType *
column_types(const ResultRelInfo *target, const IndexInfo *info)
{
	TupleDesc desc = RelationGetDescr(target->ri_RelationDesc);
	ColumnType *types = palloc(info->ii_NumIndexAttrs * sizeof(ColumnType));
	ListCell *expression = list_head(info->ii_Expressions);

	for (int i = 0; i < info->ii_NumIndexAttrs; i++)
	{
		AttrNumber attnum = info->ii_IndexAttrNumbers[i];

		if (attnum == 0)
		{
			get_typlenbyval(exprType(lfirst(expression)), &types[i].len, &types[i].byval);
			expression = lnext(info->ii_Expressions, expression);
		}
		else
		{
			types[i].len = TupleDescAttr(desc, attnum - 1)->attlen;
			types[i].byval = TupleDescAttr(desc, attnum - 1)->attbyval;
		}
	}
	return types;
}

/*
 * pp_bulk_index_begin
 *		For the indexes of `target`, which are open.  The entries of up to max_rows rows wait.  Lives in the
 *		current memory context, with a little more for each row.
 */
PpBulkIndex *
pp_bulk_index_begin(ResultRelInfo *target, EState *estate, int max_rows)
{
	PpBulkIndex *bulk = palloc0(sizeof(PpBulkIndex));
	int n = target->ri_NumIndices;

	bulk->cxt = CurrentMemoryContext;
	bulk->target = target;
	bulk->estate = estate;
	bulk->max_rows = max_rows;
	bulk->plain = n > 0;
	for (int i = 0; i < n; i++)
		bulk->plain &= is_plain(target->ri_IndexRelationDescs[i], target->ri_IndexRelationInfo[i]);
	if (!bulk->plain)
		return bulk;
	bulk->entries = palloc(n * sizeof(Entry *));
	bulk->types = palloc(n * sizeof(ColumnType *));
	bulk->ahead = palloc(n * sizeof(PpIndexAhead *));
	for (int i = 0; i < n; i++)
	{
		bulk->entries[i] = palloc(max_rows * sizeof(Entry));
		bulk->types[i] = column_types(target, target->ri_IndexRelationInfo[i]);
		bulk->ahead[i] = pp_index_ahead_begin(target->ri_IndexRelationDescs[i]);
	}
	bulk->places = palloc(max_rows * sizeof(Place));
	return bulk;
}

static SortValue
sort_value(ColumnType type, Datum value, bool isnull)
{
	SortValue result = {NULL, 0};

	if (isnull)
		result.number = PG_UINT64_MAX;
	else if (type.byval)
		/* Of signed types: the least becomes 0.  Not DatumGetInt64(), a pointer where Datum has 32 bits. */
		result.number = (uint64) value ^ (UINT64CONST(1) << 63);
	else if (type.len == -1)
	{
		struct varlena *v = (struct varlena *) DatumGetPointer(value);

		if (!VARATT_IS_EXTENDED(v) || VARATT_IS_SHORT(v))
		{
			result.bytes = VARDATA_ANY(v);
			result.number = VARSIZE_ANY_EXHDR(v);
		}
	}
	else if (type.len > 0)
	{
		result.bytes = DatumGetPointer(value);
		result.number = type.len;
	}
	return result;
}

static uint64
prefix_of(const SortValue *value)
{
	uint64 prefix = 0;

	if (value->bytes == NULL)
		return value->number;
	memcpy(&prefix, value->bytes, Min(value->number, sizeof(prefix)));
	return pg_ntoh64(prefix);
}

static int
compare(const Place *x, const Place *y)
{
	if (x->prefix != y->prefix)
		return x->prefix < y->prefix ? -1 : 1;
	for (int i = 0; i < SORT_COLUMNS; i++)
	{
		const SortValue *a = &x->entry->sort[i];
		const SortValue *b = &y->entry->sort[i];

		if (a->bytes != NULL && b->bytes != NULL)
		{
			int order = memcmp(a->bytes, b->bytes, Min(a->number, b->number));

			if (order != 0)
				return order;
		}
		if (a->number != b->number)
			return a->number < b->number ? -1 : 1;
	}
	return 0;
}

#define ST_SORT          sort_places
#define ST_ELEMENT_TYPE  Place
#define ST_COMPARE(a, b) compare(a, b)
#define ST_SCOPE         static
#define ST_DECLARE
#define ST_DEFINE
#include "lib/sort_template.h"

/* The entry of a row in one index, with values of its own: the row may go. */
static void
make_entry(PpBulkIndex *bulk, Entry *entry, int which, TupleTableSlot *row)
{
	IndexInfo *info = bulk->target->ri_IndexRelationInfo[which];
	int columns = info->ii_NumIndexAttrs;
	MemoryContext old;

	memset(entry->sort, 0, sizeof(entry->sort));
	entry->row = row->tts_tid;
	entry->values = MemoryContextAlloc(bulk->cxt, columns * (sizeof(Datum) + sizeof(bool)));
	entry->nulls = (bool *) (entry->values + columns);
	FormIndexDatum(info, row, bulk->estate, entry->values, entry->nulls);
	old = MemoryContextSwitchTo(bulk->cxt);
	for (int i = 0; i < columns; i++)
	{
		ColumnType type = bulk->types[which][i];

		if (!entry->nulls[i])
			entry->values[i] = datumCopy(entry->values[i], type.byval, type.len);
		if (i < SORT_COLUMNS)
			entry->sort[i] = sort_value(type, entry->values[i], entry->nulls[i]);
	}
	MemoryContextSwitchTo(old);
}

static void
look_ahead(PpIndexAhead *ahead, const Place *places, int n)
{
	for (int i = 0; i < n; i++)
	{
		Entry *entry = places[i].entry;

		pp_index_ahead_look(ahead, entry->values, entry->nulls, &entry->row);
	}
	pp_index_ahead_ask(ahead);
}

static void
insert_entries(PpBulkIndex *bulk, int which, const Place *places, int n)
{
	Relation index = bulk->target->ri_IndexRelationDescs[which];

	for (int i = 0; i < n; i++)
		index_insert(index, places[i].entry->values, places[i].entry->nulls, &places[i].entry->row,
					 bulk->target->ri_RelationDesc,
					 index->rd_index->indisunique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO, false,
					 bulk->target->ri_IndexRelationInfo[which]);
}

static void
sort_entries(PpBulkIndex *bulk, int which)
{
	Entry *entries = bulk->entries[which];

	for (int i = 0; i < bulk->n; i++)
		bulk->places[i] = (Place){prefix_of(&entries[i].sort[0]), &entries[i]};
	sort_places(bulk->places, bulk->n);
}

/*
 * The first entries show whether pages of the index are missing from the buffers, and those that follow
 * whether they still are.  Only then it looks ahead, which takes a tenth of the time of an entry.
 */
static void
flush_index(PpBulkIndex *bulk, int which)
{
	PpIndexAhead *ahead = bulk->ahead[which];
	bool missing = false;
	int n;

	sort_entries(bulk, which);
	for (int i = 0; i < bulk->n; i += n)
	{
		int64 before = pgBufferUsage.shared_blks_read;

		n = Min(missing ? pp_index_ahead_depth(ahead) : FEW_ENTRIES, bulk->n - i);
		if (missing)
			look_ahead(ahead, &bulk->places[i], n);
		insert_entries(bulk, which, &bulk->places[i], n);
		missing = ahead && (pgBufferUsage.shared_blks_read - before) * MISSING_PART > n;
	}
}

/*
 * pp_bulk_index_flush
 *		Makes the entries of all rows that were added.  Throws what the executor throws, perhaps for
 *		another one of several rows at fault.
 */
void
pp_bulk_index_flush(PpBulkIndex *bulk)
{
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(bulk->estate));

	for (int i = 0; i < bulk->target->ri_NumIndices && bulk->n > 0; i++)
	{
		flush_index(bulk, i);
		ResetPerTupleExprContext(bulk->estate);
	}
	MemoryContextSwitchTo(old);
	bulk->n = 0;
}

/*
 * pp_bulk_index_add
 *		The row is in the table: its entries will be made, at the latest by the next flush.
 */
void
pp_bulk_index_add(PpBulkIndex *bulk, TupleTableSlot *row)
{
	ResultRelInfo *target = bulk->target;
	MemoryContext old;

	if (target->ri_NumIndices == 0)
		return;
	if (bulk->n == bulk->max_rows)
		pp_bulk_index_flush(bulk);
	old = MemoryContextSwitchTo(GetPerTupleMemoryContext(bulk->estate));
	if (!bulk->plain)
		(void) pp_insert_index_tuples(target, row, bulk->estate);
	else
	{
		GetPerTupleExprContext(bulk->estate)->ecxt_scantuple = row;
		for (int i = 0; i < target->ri_NumIndices; i++)
			make_entry(bulk, &bulk->entries[i][bulk->n], i, row);
		bulk->n++;
	}
	MemoryContextSwitchTo(old);
	ResetPerTupleExprContext(bulk->estate);
}
