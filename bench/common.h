/*-------------------------------------------------------------------------
 *
 * common.h
 *		What client.c and latency.c share: errors end the program.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <hiredis/hiredis.h>
#include <libpq-fe.h>

static inline void
fail(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(1);
}

static inline double
seconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static inline redisContext *
redis_connect(const char *socket_path)
{
	redisContext *redis = redisConnectUnix(socket_path);

	if (redis == NULL || redis->err)
		fail("could not connect to Redis", redis ? redis->errstr : "out of memory");
	return redis;
}

static inline redisReply *
redis_next_reply(redisContext *redis)
{
	void *reply;

	if (redisGetReply(redis, &reply) != REDIS_OK)
		fail("could not read from Redis", redis->errstr);
	if (((redisReply *) reply)->type == REDIS_REPLY_ERROR)
		fail("Redis refused a command", ((redisReply *) reply)->str);
	return reply;
}

/*
 * The server and the role come from the environment (PGHOST and so on).  Times without a zone are
 * UTC in the events.
 */
static inline PGconn *
postgres_connect(void)
{
	PGconn *conn = PQconnectdb("dbname=postgres options='-c TimeZone=UTC'");

	if (PQstatus(conn) != CONNECTION_OK)
		fail("could not connect to PostgreSQL", PQerrorMessage(conn));
	return conn;
}

static inline void
postgres_prepare(PGconn *conn, const char *name, const char *sql)
{
	PGresult *result = PQprepare(conn, name, sql, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail("could not prepare a statement", PQerrorMessage(conn));
	PQclear(result);
}

#endif /* BENCH_COMMON_H */
