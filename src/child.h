/*
 * child.h
 *		A process of ours as its parent sees it: the launcher its supervisors, a supervisor its workers.
 *
 * It outlives the process, and has the back-off before the next start.  A parent that wants it calls
 * pp_child_look() in each turn, and pp_child_start() when it is not there and next_start_at has come.
 */
#ifndef PP_CHILD_H
#define PP_CHILD_H

#include "backoff.h"
#include "shmem.h"
#include "steady.h"

#include "postmaster/bgworker.h"

typedef struct PpChild
{
	PpProc *proc;      /* NULL: not there */
	uint32 generation; /* of the slot when it was reserved */
	BackgroundWorkerHandle *handle;
	PpSteady started_at; /* unset: the next start is no restart */
	PpSteady next_start_at;
	PpSteady stop_asked_at; /* unset: not asked */
	PpBackoff backoff;
} PpChild;

extern void pp_child_init(PpChild *c, int backoff_cap_ms);
extern bool pp_child_look(PpChild *c);
extern bool pp_child_start(PpChild *c, PpProc *proc, const char *main_function, const char *name,
						   const char *type);
extern void pp_child_wait(PpChild *c);
extern void pp_child_stop(PpChild *c, int deadline_ms);
extern long pp_child_due_ms(const PpChild *c);

#endif /* PP_CHILD_H */
