/*
 * supervisor_internal.h
 *		A supervisor's state, shared by supervisor.c and supervisor_workers.c alone.
 */
#ifndef PP_SUPERVISOR_INTERNAL_H
#define PP_SUPERVISOR_INTERNAL_H

#include "measure.h"
#include "pipeline.h"
#include "shmem.h"

#define PP_STOP_DEADLINE_MS 5000 /* from asking a worker to stop to terminating it */

typedef struct PpSupervisor
{
	MemoryContext cxt;
	MemoryContext list_cxt; /* the definitions; reset before they are read anew */
	MemoryContext scratch;  /* reset in each turn of the loop */
	char datname[NAMEDATALEN];
	bool created;    /* the extension is */
	bool stopping;   /* it was asked to, and waits for its workers */
	List *pipelines; /* PpPipeline */
	List *tracks;    /* Track, of supervisor_workers.c */
	PpMeasure *measure;
} PpSupervisor;

/* supervisor.c */
extern const char *pp_supervisor_reason_to_rest(const PpPipeline *p, PpState *state,
												const char **code);
extern void pp_supervisor_set_pipe_status(PpPipe *pipe, PpState state, const char *code,
										  const char *reason);

/* supervisor_workers.c */
extern long pp_supervisor_reconcile(PpSupervisor *s);
extern bool pp_supervisor_has_workers(PpSupervisor *s, const char *pipeline);
extern bool pp_supervisor_strangers_left(PpSupervisor *s);

#endif /* PP_SUPERVISOR_INTERNAL_H */
