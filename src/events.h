/*
 * events.h
 *		The last changes of state, and errors.
 */
#ifndef PP_EVENTS_H
#define PP_EVENTS_H

#include "shmem.h"

extern void pp_event_state(const char *pipeline, PpState state, const char *code,
						   const char *reason, const char *hint);
extern void pp_event_error(const char *pipeline, int sqlstate, const char *message);
extern bool pp_event_copy(int number, PpEvent *copy);

#endif /* PP_EVENTS_H */
