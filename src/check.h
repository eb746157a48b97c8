/*
 * check.h
 *		What postpipe_check() looks at.
 */
#ifndef PP_CHECK_H
#define PP_CHECK_H

#include "sqlfuncs.h"

typedef struct PpCheck
{
	FunctionCallInfo fcinfo;
	const struct PpCheckRule *rule; /* that is looked at */
	const PpExtension *ext;
	const PpPipeline *p; /* NULL: of the server */
	List *pipelines;     /* all of this database */
	PpRedis *conn;       /* NULL: Redis cannot be asked … */
	char *no_redis;      /* … for this reason */
	bool own_server;     /* the connection is to a server of a pipeline's own */
} PpCheck;

typedef struct PpCheckRule
{
	const char *name;
	void (*look)(PpCheck *c); /* NULL: it is no function of its own */
} PpCheckRule;

/* sqlfuncs_check.c: a line each. */
extern void pp_check_ok(PpCheck *c, const char *detail);
extern void pp_check_warning(PpCheck *c, const char *detail, const char *hint);
extern void pp_check_error(PpCheck *c, const char *detail, const char *hint);
extern bool pp_check_has_redis(PpCheck *c);
extern char **pp_check_ask(PpCheck *c, const char *sql);

/* Each ends with a rule without a name. */
extern const PpCheckRule pp_check_server_rules[];   /* check_server.c */
extern const PpCheckRule pp_check_redis_rules[];    /* check_redis.c */
extern const PpCheckRule pp_check_pipeline_rules[]; /* check_pipeline.c */
extern const PpCheckRule pp_check_stream_rules[];   /* check_stream.c */

#endif /* PP_CHECK_H */
