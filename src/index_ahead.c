/*
 * index_ahead.c
 *		Pages of a B-tree where new entries will go, asked for before they are needed.
 *
 * Keys in no order need another leaf page for nearly each entry.  Where the index is not in memory,
 * that is another read from the disk, and who makes one entry after the other waits for them one by
 * one.  But the keys of a batch are known before.  So the pages above the leaves are looked at first,
 * of which there is one for a hundred leaves or more, and the leaves are asked for together.
 *
 * Nothing depends on it: what changes in the index meanwhile makes a page that was asked for useless,
 * and no more.  The way down is that of nbtree (nbtsearch.c, src/backend/access/nbtree/README), with
 * its own functions for reading, locking and comparing.
 */
#include "index_ahead.h"

#include "access/nbtree.h"
#include "catalog/pg_am.h"
#include "storage/bufmgr.h"
#include "utils/spccache.h"

#include "compat.h"

struct PpIndexAhead
{
	Relation index;
	BTScanInsert key; /* its values are set for each entry */
	Buffer parent;    /* of the leaf that was found last, locked */
	int depth;        /* pages that are asked for together, at most */
	int n;            /* leaves that were found */
	BlockNumber *leaves;
};

/*
 * pp_index_ahead_begin
 *		For the entries of an index, or NULL if that is no use: it is no B-tree, or its tablespace
 *		or maintenance_io_concurrency says that nothing is to be read ahead.  Lives in the current memory
 *		context.
 */
PpIndexAhead *
pp_index_ahead_begin(Relation index)
{
	PpIndexAhead *ahead;
	int depth = get_tablespace_maintenance_io_concurrency(index->rd_rel->reltablespace);

	if (index->rd_rel->relam != BTREE_AM_OID || depth == 0)
		return NULL;
	ahead = palloc0(sizeof(PpIndexAhead));
	ahead->index = index;
	ahead->key = _bt_mkscankey(index, NULL);
	_bt_metaversion(index, &ahead->key->heapkeyspace, &ahead->key->allequalimage);
	ahead->key->keysz = IndexRelationGetNumberOfKeyAttributes(index);
	ahead->parent = InvalidBuffer;
	ahead->depth = depth;
	ahead->leaves = palloc(depth * sizeof(BlockNumber));
	return ahead;
}

/*
 * pp_index_ahead_depth
 *		So many entries at most between two calls of pp_index_ahead_ask().
 */
int
pp_index_ahead_depth(const PpIndexAhead *ahead)
{
	return ahead->depth;
}

/* False: a value that is stored elsewhere would have to be read to compare it. */
static bool
set_key(PpIndexAhead *ahead, const Datum *values, const bool *nulls, ItemPointer row)
{
	BTScanInsert key = ahead->key;

	for (int i = 0; i < key->keysz; i++)
	{
		ScanKey column = &key->scankeys[i];

		if (!nulls[i] && TupleDescAttr(RelationGetDescr(ahead->index), i)->attlen == -1 &&
			VARATT_IS_EXTERNAL(DatumGetPointer(values[i])))
			return false;
		column->sk_argument = values[i];
		if (nulls[i])
			column->sk_flags |= SK_ISNULL;
		else
			column->sk_flags &= ~SK_ISNULL;
	}
	/* Equal keys are in the order of their rows, so a new one comes last. */
	key->scantid = key->heapkeyspace ? row : NULL;
	return true;
}

static bool
is_right_of(Relation index, BTScanInsert key, Page page)
{
	BTPageOpaque opaque = BTPageGetOpaque(page);

	return P_IGNORE(opaque) || (!P_RIGHTMOST(opaque) && _bt_compare(index, key, page, P_HIKEY) > 0);
}

/* The child of an inner page in which a key belongs.  That of its first item has no lower bound there. */
static OffsetNumber
child_of(Relation index, BTScanInsert key, Page page)
{
	OffsetNumber low = P_FIRSTDATAKEY(BTPageGetOpaque(page));
	OffsetNumber high = PageGetMaxOffsetNumber(page);

	while (low < high)
	{
		OffsetNumber middle = low + (high - low + 1) / 2;

		if (_bt_compare(index, key, page, middle) > 0)
			low = middle;
		else
			high = middle - 1;
	}
	return low;
}

static BlockNumber
block_of(Page page, OffsetNumber child)
{
	return BTreeTupleGetDownLink((IndexTuple) PageGetItem(page, PageGetItemId(page, child)));
}

/* The page above the leaf in which a key belongs, locked; none if the root is a leaf, or there is no root. */
static Buffer
find_parent(Relation index, BTScanInsert key)
{
	Buffer buffer = pp_btree_root(index);

	while (BufferIsValid(buffer))
	{
		Page page = BufferGetPage(buffer);
		BTPageOpaque opaque = BTPageGetOpaque(page);

		if (P_ISLEAF(opaque) || (P_IGNORE(opaque) && P_RIGHTMOST(opaque)))
		{
			_bt_relbuf(index, buffer);
			return InvalidBuffer;
		}
		if (is_right_of(index, key, page))
			buffer = _bt_relandgetbuf(index, buffer, opaque->btpo_next, BT_READ);
		else if (opaque->btpo_level == 1)
			return buffer;
		else
			buffer = _bt_relandgetbuf(index, buffer, block_of(page, child_of(index, key, page)),
									  BT_READ);
	}
	return InvalidBuffer;
}

/* Whether the key belongs below the page, as far as the page itself tells; if so, in which child. */
static bool
is_below(Relation index, BTScanInsert key, Page page, OffsetNumber *child)
{
	BTPageOpaque opaque = BTPageGetOpaque(page);

	if (is_right_of(index, key, page))
		return false;
	*child = child_of(index, key, page);
	return *child > P_FIRSTDATAKEY(opaque) || P_LEFTMOST(opaque);
}

static void
leave_parent(PpIndexAhead *ahead)
{
	if (BufferIsValid(ahead->parent))
		_bt_relbuf(ahead->index, ahead->parent);
	ahead->parent = InvalidBuffer;
}

/*
 * pp_index_ahead_look
 *		Finds the leaf for the entry of a row, given as to index_insert().  Keys in about the order of the index,
 *		up or down, take the least time.  To be followed by pp_index_ahead_ask() before anything else is done
 *		with the index: a page stays locked.
 */
void
pp_index_ahead_look(PpIndexAhead *ahead, const Datum *values, const bool *nulls, ItemPointer row)
{
	Relation index = ahead->index;
	OffsetNumber child;
	BlockNumber leaf;

	if (!set_key(ahead, values, nulls, row))
		return;
	if (!BufferIsValid(ahead->parent) ||
		!is_below(index, ahead->key, BufferGetPage(ahead->parent), &child))
	{
		leave_parent(ahead);
		ahead->parent = find_parent(index, ahead->key);
		if (!BufferIsValid(ahead->parent))
			return;
		child = child_of(index, ahead->key, BufferGetPage(ahead->parent));
	}
	leaf = block_of(BufferGetPage(ahead->parent), child);
	if (ahead->n == 0 || ahead->leaves[ahead->n - 1] != leaf)
		ahead->leaves[ahead->n++] = leaf;
}

/*
 * pp_index_ahead_ask
 *		Asks for all leaves that were found.  Those that are in the server's buffers cost next to nothing.
 */
void
pp_index_ahead_ask(PpIndexAhead *ahead)
{
	leave_parent(ahead);
	for (int i = 0; i < ahead->n; i++)
	{
		elog(DEBUG3, "asking ahead for page %u of index \"%s\"", ahead->leaves[i],
			 RelationGetRelationName(ahead->index));
		(void) PrefetchBuffer(ahead->index, MAIN_FORKNUM, ahead->leaves[i]);
	}
	ahead->n = 0;
}
