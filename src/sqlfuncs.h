/*
 * sqlfuncs.h
 *		Shared by the files with SQL functions.
 */
#ifndef PP_SQLFUNCS_H
#define PP_SQLFUNCS_H

#include "pipeline.h"
#include "redis.h"
#include "shmem.h"

extern void pp_require_extension(PpExtension *ext);
extern PpState pp_pipeline_status(const char *name, PpPipe **pipe);

/* sqlfuncs_redis.c */
extern PpRedis *pp_function_connect(void);
extern PpReply *pp_function_reply(PpRedis *conn);
extern void pp_function_fail(const PpReply *reply) pg_attribute_noreturn();

#endif /* PP_SQLFUNCS_H */
