/*
 * utility_hook.h
 *		What our processes have to know of DDL in other backends.
 */
#ifndef PP_UTILITY_HOOK_H
#define PP_UTILITY_HOOK_H

#include "postpipe.h"

extern void pp_utility_hook_install(void);
extern void pp_wake_at_commit(void);

#endif /* PP_UTILITY_HOOK_H */
