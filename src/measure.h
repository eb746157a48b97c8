/*
 * measure.h
 *		Pending and lag of the pipelines of a database, measured in Redis.
 */
#ifndef PP_MEASURE_H
#define PP_MEASURE_H

#include "postpipe.h"
#include "nodes/pg_list.h"

typedef struct PpMeasure PpMeasure;

extern PpMeasure *pp_measure_create(MemoryContext parent);
extern long pp_measure_step(PpMeasure *m, List *pipelines);
extern bool pp_measure_wait(PpMeasure *m, long timeout_ms, long due_ms);

#endif /* PP_MEASURE_H */
