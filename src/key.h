/*
 * key.h
 *		The key of an entry: what decides which row of the target it writes.
 */
#ifndef PP_KEY_H
#define PP_KEY_H

#include "event_object.h"
#include "nodes/pg_list.h"

/* A column of the key. */
typedef struct PpKeyColumn
{
	List *sources;      /* PpSource, of which the first that is there counts; NIL: the ID */
	bool empty_is_null; /* '' counts as absent */
	bool absent_alike;  /* entries that say nothing have the same value */
} PpKeyColumn;

extern bool pp_key_hash(List *key, const PpEntry *entry, uint64 *hash);
extern uint16 pp_key_mark(List *key);

#endif /* PP_KEY_H */
