/*
 * event.h
 *		From an entry's fields to the event that a statement sees.
 */
#ifndef PP_EVENT_H
#define PP_EVENT_H

#include "batch.h"
#include "nodes/pg_list.h"

extern void pp_event_normalize(PpEntry *entry, List *event_types);
extern void pp_event_filter(PpEntry *entry, List *event_types);
extern bool pp_event_is_unsure(const PpEntry *entry);
extern uint64 pp_hash_string(uint64 hash, const PpString *s);
extern uint64 pp_event_hash(const PpEntry *entry);
extern PpEntryError *pp_entry_error_capture(MemoryContext cxt);

#endif /* PP_EVENT_H */
