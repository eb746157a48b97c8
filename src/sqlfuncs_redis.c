/*
 * sqlfuncs_redis.c
 *		Redis for SQL functions: a connection for the length of one call.
 *
 * Unlike our own processes, a function has a transaction open while it waits; so it waits only
 * REDIS_MS for each answer.  The connection is closed with the memory context of the call.
 */
#include "sqlfuncs.h"

#include "utils/memutils.h"

#include "guc.h"

#define REDIS_MS 5000

static void
fail(const PpRedisError *error)
{
	const char *hint = pp_redis_error_hint(error);

	ereport(ERROR, (errcode(pp_redis_error_sqlstate(error)), errmsg("Redis: %s", error->message),
					hint ? errhint("%s", hint) : 0));
}

/* Connects to the pipeline's server, or (NULL) to postpipe.redis_url, or throws. */
PpRedis *
pp_function_connect(const PpPipeline *p)
{
	PpRedis *conn = pp_redis_create(CurrentMemoryContext, "postpipe:function");
	PpRedisUrl url;
	const char *why;

	if (p == NULL)
		pp_guc_redis_url(&url);
	else if ((why = pp_pipeline_redis(p, &url)) != NULL)
	{
		(void) pp_redis_fail(conn, PP_REDIS_CLASS_SETTING, "redis_server", "%s", why);
		fail(pp_redis_error(conn));
	}
	if (!pp_redis_start(conn, &url) ||
		pp_redis_receive(conn, NULL, REDIS_MS, PP_WAIT_REDIS_CONNECT) == PP_REDIS_FAILED)
		fail(pp_redis_error(conn));
	pp_redis_reply_target(conn, CurrentMemoryContext, PP_FUNCTION_REPLY);
	return conn;
}

/* The reply to the command that was sent last, or throws when none comes. */
PpReply *
pp_function_reply(PpRedis *conn)
{
	PpReply *reply;

	if (pp_redis_receive(conn, &reply, REDIS_MS, PP_WAIT_REDIS_REPLY) != PP_REDIS_REPLY)
		fail(pp_redis_error(conn));
	return reply;
}

/* Throws what an error reply says, or that the reply is not one that was expected. */
void
pp_function_fail(const PpReply *reply)
{
	PpRedisError error;

	if (reply->type == PP_REPLY_ERROR)
		pp_redis_error_reply(&error, reply->str, reply->len);
	else
		pp_redis_error_set(&error, PP_REDIS_CLASS_MOMENT, "redis_protocol",
						   "a reply has a shape that was not expected");
	fail(&error);
	pg_unreachable();
}

/* Is this reply the error that has this code?  Throws what any other error says. */
bool
pp_function_failed_with(const PpReply *reply, const char *code)
{
	PpRedisError error;

	if (reply->type != PP_REPLY_ERROR)
		return false;
	pp_redis_error_reply(&error, reply->str, reply->len);
	if (strcmp(error.code, code) != 0)
		fail(&error);
	return true;
}

static void
get_replies(PpRedis *conn, PpReply **replies, int n)
{
	pp_redis_skim(conn, true);
	for (int i = 0; i < n; i++)
		replies[i] = pp_function_reply(conn);
	pp_redis_skim(conn, false);
}

/* Where stream and group of the pipeline stand: at one moment, unless Redis is out of memory. */
PpStreamFacts
pp_function_facts(PpRedis *conn, const PpPipeline *p)
{
	PpReply *replies[PP_STREAM_FACT_REPLIES];
	PpStreamFacts facts;
	PpRedisError error;

	pp_stream_send_facts(conn, p->stream, p->group);
	get_replies(conn, replies, PP_STREAM_FACT_REPLIES);
	if (pp_stream_parse_facts(replies, p->group, &facts, &error))
		return facts;
	if (strcmp(error.code, "redis_oom") != 0)
		fail(&error);
	pp_stream_send_loose_facts(conn, p->stream, p->group);
	get_replies(conn, replies, PP_STREAM_LOOSE_REPLIES);
	if (!pp_stream_parse_loose_facts(replies, p->group, &facts, &error))
		fail(&error);
	return facts;
}
