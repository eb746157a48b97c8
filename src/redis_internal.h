/*
 * redis_internal.h
 *		Shared by redis.c and redis_reply.c alone: hiredis.
 */
#ifndef PP_REDIS_INTERNAL_H
#define PP_REDIS_INTERNAL_H

#include <hiredis/hiredis.h>

#include "redis_reply.h"

extern redisReplyObjectFunctions *pp_reply_functions(void);

#endif /* PP_REDIS_INTERNAL_H */
