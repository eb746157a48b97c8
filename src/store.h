/*
 * store.h
 *		SQL on the extension's own tables.
 */
#ifndef PP_STORE_H
#define PP_STORE_H

#include "pipeline.h"
#include "stream_id.h"

#include "executor/spi.h"

/* Who the session was before pp_store_begin(). */
typedef struct PpStoreScope
{
	Oid user;
	int context;    /* the flags of GetUserIdAndSecContext() */
	int nest_level; /* of settings */
} PpStoreScope;

extern void pp_store_begin(PpStoreScope *store, const PpExtension *ext);
extern void pp_store_end(PpStoreScope *store);
extern Datum pp_store_id_array(const PpExtension *ext, const PpId *ids, int n);
extern int64 pp_store_get_number(HeapTuple row, TupleDesc desc, int column);
extern PpId pp_store_get_id(HeapTuple row, TupleDesc desc, int column);
extern void pp_store_by_index(void);
extern uint64 pp_store_execute(const PpExtension *ext, const char *sql, int nargs, const Oid *types,
							   const Datum *values, const bool *nulls);
extern void pp_store_note_progress(const PpExtension *ext, const char *pipeline, const char *flag);
extern void pp_store_clear_progress(const PpExtension *ext, const char *pipeline, const char *flag);
extern bool pp_store_progress_has(const PpExtension *ext, const char *pipeline, const char *flag);
extern uint64 pp_store_execute_plan(SPIPlanPtr *plan, const char *sql, int nargs, const Oid *types,
									const Datum *values, const char *nulls);

#endif /* PP_STORE_H */
