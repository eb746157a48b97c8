/*
 * consumer.h
 *		Whose is a consumer of a group?
 */
#ifndef PP_CONSUMER_H
#define PP_CONSUMER_H

#include "batch.h"
#include "pipeline.h"

typedef enum PpConsumerKind
{
	PP_CONSUMER_FOREIGN, /* not of this cluster */
	PP_CONSUMER_ALIVE,   /* of a worker that runs, or may run again: it settles what it received */
	PP_CONSUMER_UNKNOWN, /* of another database of this cluster, which does not tell */
	PP_CONSUMER_DEAD     /* of a worker that will not come back */
} PpConsumerKind;

extern void pp_consumer_name(char *dst, const char *pipeline, int worker);
extern bool pp_consumer_is_ours(PpString name);
extern int pp_consumer_worker(PpString name, const char *pipeline);
extern int pp_consumer_pid(PpString name);
extern PpConsumerKind pp_consumer_kind(List *pipelines, const PpPipeline *reader, PpString name);
extern bool pp_consumer_has_no_worker(PpConsumerKind kind, PpString name);

#endif /* PP_CONSUMER_H */
