/*
 * index_ahead.h
 *		Pages of a B-tree where new entries will go, asked for before they are needed.
 */
#ifndef PP_INDEX_AHEAD_H
#define PP_INDEX_AHEAD_H

#include "postpipe.h"
#include "utils/rel.h"

typedef struct PpIndexAhead PpIndexAhead;

extern PpIndexAhead *pp_index_ahead_begin(Relation index);
extern int pp_index_ahead_depth(const PpIndexAhead *ahead);
extern void pp_index_ahead_look(PpIndexAhead *ahead, const Datum *values, const bool *nulls,
								ItemPointer row);
extern void pp_index_ahead_ask(PpIndexAhead *ahead);

#endif /* PP_INDEX_AHEAD_H */
