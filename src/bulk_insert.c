/*
 * bulk_insert.c
 *		A plain INSERT … SELECT whose rows go into the table many at a time, as those of COPY do.
 *
 * The executor inserts row by row: it looks for a page, locks it and logs the change for each.
 * table_multi_insert() does that once for all rows that fit a page.  So the plan of the INSERT is
 * taken apart: its ModifyTable node is left out, the plan below, which makes whole rows of the
 * table, is run, and a DestReceiver inserts what it returns.
 *
 * That is allowed where nobody can tell the difference: for plain tables without triggers, whose
 * defaults do not look at the table.  Constraints, generated columns and indexes are served here,
 * by the executor's own functions, as COPY does (copyfrom.c).
 */
#include "bulk_insert.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/nodeModifyTable.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_coerce.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "utils/lsyscache.h"
#include "utils/typcache.h"

#include "batch_row.h"
#include "batch_scan.h"
#include "bulk_index.h"
#include "compat.h"

#define MAX_ROWS    1000  /* that wait to be inserted; the number and … */
#define MAX_BYTES   65535 /* … the size of COPY: they should stay in the processor's cache */
#define MAX_ENTRIES 2000  /* rows in the table that wait for their index entries */
#define RING_ROWS   500   /* so many at once are a backlog */

typedef struct BulkReceiver
{
	DestReceiver pub;
	EState *estate;
	ResultRelInfo *target;
	PpBulkIndex *index;
	CommandId cid;
	TupleDesc desc; /* of the slots */
	int n;
	Size bytes;
	bool tried;                      /* the entries of the first rows are made */
	BulkInsertState ring;            /* NULL: any buffers will do */
	TupleTableSlot *slots[MAX_ROWS]; /* made when first needed */
} BulkReceiver;

/*
 * A backlog goes through a small ring of buffers, as what COPY loads does: they stay in the processor's
 * cache, and what others need stays in the buffer pool.  It is kept from batch to batch, or it would
 * never be filled.
 */
static MemoryContext ring_cxt;
static BulkInsertState kept_ring; /* NULL: none is kept */

static bool is_volatile(Oid type);

static bool
has_volatile_domain_check(Oid domain)
{
	DomainConstraintRef *ref = palloc0(sizeof(DomainConstraintRef));
	ListCell *lc;

	InitDomainConstraintRef(domain, ref, CurrentMemoryContext, false);
	foreach (lc, ref->constraints)
		if (contain_volatile_functions((Node *) ((DomainConstraintState *) lfirst(lc))->check_expr))
			return true;
	return is_volatile(getBaseType(domain));
}

static bool
has_volatile_attribute(Oid composite)
{
	TupleDesc desc = lookup_rowtype_tupdesc(composite, -1);
	bool found = false;

	for (int i = 0; i < desc->natts && !found; i++)
		found =
			!TupleDescAttr(desc, i)->attisdropped && is_volatile(TupleDescAttr(desc, i)->atttypid);
	ReleaseTupleDesc(desc);
	return found;
}

/* Could a value of the type look at the table while it is made, by its input function or a check of a domain in it? */
static bool
is_volatile(Oid type)
{
	Oid input;
	Oid ioparam;

	getTypeInputInfo(type, &input, &ioparam);
	if (func_volatile(input) == PROVOLATILE_VOLATILE)
		return true;
	switch (get_typtype(type))
	{
		case TYPTYPE_DOMAIN:
			return has_volatile_domain_check(type);
		case TYPTYPE_COMPOSITE:
			return has_volatile_attribute(type);
		case TYPTYPE_RANGE:
			return is_volatile(get_range_subtype(type));
		case TYPTYPE_MULTIRANGE:
			return is_volatile(get_multirange_range(type));
		default:
			return OidIsValid(get_element_type(type)) && is_volatile(get_element_type(type));
	}
}

/* Is a text made one of this type, or of its elements, by a function that could? */
static bool
has_volatile_cast(Oid type)
{
	Oid element = get_element_type(type);
	Oid function;

	return (OidIsValid(element) && has_volatile_cast(element)) ||
		   (find_coercion_pathway(type, TEXTOID, COERCION_EXPLICIT, &function) ==
				COERCION_PATH_FUNC &&
			func_volatile(function) == PROVOLATILE_VOLATILE);
}

/* Is a value made one of a domain in the expression, whose check could?  That is no function call. */
static bool
has_volatile_domain(Node *expr, void *unused)
{
	if (expr == NULL)
		return false;
	if (IsA(expr, CoerceToDomain) && is_volatile(((CoerceToDomain *) expr)->resulttype))
		return true;
	return expression_tree_walker(expr, has_volatile_domain, unused);
}

/*
 * pp_bulk_insert_allowed
 *		May rows wait before they are inserted?  Not where a value, a default or a constraint could look at the
 *		table, nor where a rule says what is done instead.
 */
bool
pp_bulk_insert_allowed(Relation rel)
{
	TupleDesc desc = RelationGetDescr(rel);

	if (rel->rd_rules != NULL)
		return false;
	for (int i = 0; desc->constr != NULL && i < desc->constr->num_check; i++)
	{
		Node *check = stringToNode(desc->constr->check[i].ccbin);

		if (contain_volatile_functions(check) || has_volatile_domain(check, NULL))
			return false;
	}
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Node *value;

		if (att->attisdropped)
			continue;
		value = build_column_default(rel, att->attnum);
		if (is_volatile(att->atttypid) || has_volatile_cast(att->atttypid) ||
			contain_volatile_functions_not_nextval(value) || has_volatile_domain(value, NULL))
			return false;
	}
	return true;
}

/*
 * While it is in use none is kept: after an error its pins are gone, and so is it.  One is enough: functions
 * in a backend do not run a statement in bulk, so nothing that is called meanwhile does.
 */
static BulkInsertState
take_ring(void)
{
	BulkInsertState ring = kept_ring;
	MemoryContext old;

	kept_ring = NULL;
	if (ring != NULL)
		return ring;
	if (ring_cxt == NULL)
		ring_cxt =
			AllocSetContextCreate(TopMemoryContext, "postpipe buffer ring", ALLOCSET_SMALL_SIZES);
	MemoryContextReset(ring_cxt);
	old = MemoryContextSwitchTo(ring_cxt);
	ring = GetBulkInsertState();
	MemoryContextSwitchTo(old);
	return ring;
}

static void
keep_ring(BulkInsertState ring)
{
	ReleaseBulkInsertStatePin(ring);
	kept_ring = ring;
}

/* Inserts the rows that wait. */
static void
flush(BulkReceiver *bulk)
{
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(bulk->estate));

	table_multi_insert(bulk->target->ri_RelationDesc, bulk->slots, bulk->n, bulk->cid, 0,
					   bulk->ring);
	MemoryContextSwitchTo(old);
	ResetPerTupleExprContext(bulk->estate);
	for (int i = 0; i < bulk->n; i++)
	{
		pp_bulk_index_add(bulk->index, bulk->slots[i]);
		ExecClearTuple(bulk->slots[i]);
	}
	bulk->n = 0;
	bulk->bytes = 0;
	/* If rows conflict, mostly one of the first does: that shows before all others are in the table. */
	if (!bulk->tried)
		pp_bulk_index_flush(bulk->index);
	bulk->tried = true;
}

static bool
receive(TupleTableSlot *row, DestReceiver *self)
{
	BulkReceiver *bulk = (BulkReceiver *) self;
	Relation rel = bulk->target->ri_RelationDesc;
	TupleConstr *constr = RelationGetDescr(rel)->constr;
	TupleTableSlot *slot = bulk->slots[bulk->n];

	if (slot == NULL)
		slot = bulk->slots[bulk->n] =
			MakeSingleTupleTableSlot(bulk->desc, table_slot_callbacks(rel));
	ExecCopySlot(slot, row);
	slot->tts_tableOid = row->tts_tableOid = RelationGetRelid(rel);
	if (constr != NULL && constr->has_generated_stored)
	{
		ExecComputeStoredGenerated(bulk->target, bulk->estate, slot, CMD_INSERT);
		row = slot;
	}
	/* The row as it came has its values at hand; in the copy they would have to be looked for. */
	if (constr != NULL)
		ExecConstraints(bulk->target, row, bulk->estate);
	if (rel->rd_rel->relispartition)
		ExecPartitionCheck(bulk->target, row, bulk->estate, true);
	bulk->n++;
	bulk->bytes += ExecFetchSlotHeapTuple(slot, true, NULL)->t_len;
	if (bulk->n == MAX_ROWS || bulk->bytes >= MAX_BYTES)
		flush(bulk);
	return true;
}

static void
start_up(DestReceiver *self, int operation, TupleDesc row)
{
}

static void
do_nothing(DestReceiver *self)
{
}

/* Is it a table whose rows can be inserted here, and are the plan's rows those of the table? */
static bool
fits(Oid relid, const Plan *rows)
{
	Relation rel = table_open(relid, NoLock); /* the plan has the lock */
	bool fits = pp_row_fits(rel, rows);

	table_close(rel, NoLock);
	return fits;
}

/*
 * The INSERT of a plan, if its rows are made by a plan of their own and nothing but the table's
 * definition decides what becomes of them; else NULL.
 */
static ModifyTable *
find_insert(const PlannedStmt *stmt)
{
	ModifyTable *insert = (ModifyTable *) stmt->planTree;

	if (stmt->commandType != CMD_INSERT || stmt->hasModifyingCTE || !IsA(insert, ModifyTable) ||
		list_length(insert->resultRelations) != 1 || insert->onConflictAction != ONCONFLICT_NONE ||
		insert->withCheckOptionLists != NIL || insert->returningLists != NIL ||
		!fits(rt_fetch(linitial_int(insert->resultRelations), stmt->rtable)->relid,
			  outerPlan(insert)))
		return NULL;
	return insert;
}

/* Runs the plan below the INSERT, with the rows into its table. */
static void
run(const PpBatchPlan *plan, ModifyTable *insert, const char *sql, const PpBatchRelation *batch)
{
	BulkReceiver *bulk = palloc0(sizeof(BulkReceiver));
	PlannedStmt *rows = palloc(sizeof(PlannedStmt));
	QueryDesc *query;

	memcpy(rows, plan->stmt, sizeof(PlannedStmt));
	rows->commandType = CMD_SELECT;
	rows->planTree = outerPlan(insert);
	rows->resultRelations = NIL;

	bulk->pub.receiveSlot = receive;
	bulk->pub.rStartup = start_up;
	bulk->pub.rShutdown = do_nothing;
	bulk->pub.rDestroy = do_nothing;
	bulk->pub.mydest = DestNone;
	query = pp_batch_query_start(plan, rows, sql, batch, (DestReceiver *) bulk);

	bulk->estate = query->estate;
	bulk->cid = GetCurrentCommandId(true);
	bulk->target = makeNode(ResultRelInfo);
	ExecInitResultRelation(bulk->estate, bulk->target, linitial_int(insert->resultRelations));
	ExecOpenIndices(bulk->target, false);
	bulk->index =
		pp_bulk_index_begin(bulk->target, bulk->estate, Min(Max(batch->n, 1), MAX_ENTRIES));
	/* A copy has no references that each slot would have to count. */
	bulk->desc = CreateTupleDescCopy(RelationGetDescr(bulk->target->ri_RelationDesc));

	if (batch->n >= RING_ROWS)
		bulk->ring = take_ring();

	pp_executor_run(query);
	if (bulk->n > 0)
		flush(bulk);
	if (bulk->ring != NULL)
		keep_ring(bulk->ring);
	/* As COPY does: heap has nothing left to do, other access methods may. */
	table_finish_bulk_insert(bulk->target->ri_RelationDesc, 0);
	pp_bulk_index_flush(bulk->index);
	pp_batch_query_end(query);
}

/*
 * pp_bulk_insert
 *		Runs the plan of an INSERT … SELECT without parameters that reads the batch once, with the active
 *		snapshot.  False: nothing was done, the plan or its table is not of the kind for it.  Throws
 *		what the statement throws.
 */
bool
pp_bulk_insert(const PpBatchPlan *plan, const char *sql, const PpBatchRelation *batch)
{
	ModifyTable *insert = find_insert(plan->stmt);

	if (insert != NULL)
		run(plan, insert, sql, batch);
	return insert != NULL;
}
