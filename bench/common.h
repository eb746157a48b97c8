/*-------------------------------------------------------------------------
 *
 * common.h
 *		What the programs that talk to both servers share: errors end the program.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

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
redis_connect(const char *port)
{
	redisContext *redis = redisConnect("127.0.0.1", atoi(port));

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
	PGconn *conn =
		PQconnectdb("dbname=postgres fallback_application_name=bench options='-c TimeZone=UTC'");

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

/* CPU seconds of another process on this machine, user and system */
static inline double
process_cpu_seconds(int pid)
{
	char path[64];
	char line[1024];
	FILE *file;
	unsigned long user = 0;
	unsigned long system = 0;
	char *rest;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	if (file == NULL)
		return 0;
	/* the process name in parentheses may hold anything: start behind it */
	if (fgets(line, sizeof(line), file) != NULL && (rest = strrchr(line, ')')) != NULL)
		sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
	fclose(file);
	return (double) (user + system) / sysconf(_SC_CLK_TCK);
}

#endif /* BENCH_COMMON_H */
