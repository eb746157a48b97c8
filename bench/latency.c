/*-------------------------------------------------------------------------
 *
 * latency.c
 *		How long one post takes, seen from outside.
 *
 * Usage: latency stream REDIS_PORT STREAM TABLE COUNT PAUSE
 *		  latency insert TABLE COUNT PAUSE
 *
 * "stream" adds one entry after another to an otherwise idle stream and asks
 * for its row until it is there: from before XADD is sent to the answer that
 * has the row.  Asking never stops in between, so the result is exact to one
 * round trip (some 0.05 ms), and it costs CPU that the pipeline could use:
 * what is printed is rather too high than too low.
 *
 * "insert" commits the same posts one by one through libpq into a table of the
 * same shape: what an application would wait that writes to PostgreSQL itself.
 *
 * PAUSE, in milliseconds, is before each: for XACK and the next blocking read.
 * The program prints a JSON object, times in milliseconds.
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <unistd.h>

#include "post.h"

#define TIMEOUT_SECONDS 30

static bool
row_is_there(PGconn *conn, const Post *post)
{
	const char *values[] = {CHANNEL, post->message_id};
	PGresult *result = PQexecPrepared(conn, "find", 2, values, NULL, NULL, 0);
	bool found;

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		fail("could not look for a row", PQerrorMessage(conn));
	found = PQntuples(result) == 1;
	PQclear(result);
	return found;
}

static void
insert_row(PGconn *conn, const Post *post)
{
	const char *values[] = {post->post_id,
							CHANNEL,
							post->message_id,
							TEXT,
							"[\"https://example.com/1.jpg\"]",
							"2025-10-29T00:00:00+03:00",
							"2025-10-28T21:00:05Z",
							post->url,
							"true",
							"false",
							"32957",
							"265",
							"341"};
	PGresult *result = PQexecPrepared(conn, "insert", 13, values, NULL, NULL, 0);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		fail("could not insert a row", PQerrorMessage(conn));
	PQclear(result);
}

int
main(int argc, char **argv)
{
	bool use_stream = argc == 7 && strcmp(argv[1], "stream") == 0;
	const char *table;
	int count;
	int pause_ms;
	double *times;
	PGconn *conn;
	redisContext *redis = NULL;
	char sql[1024];
	long long first = first_number();

	if (!use_stream && !(argc == 5 && strcmp(argv[1], "insert") == 0))
	{
		fprintf(stderr,
				"usage: %s stream REDIS_PORT STREAM TABLE COUNT PAUSE\n"
				"       %s insert TABLE COUNT PAUSE\n",
				argv[0], argv[0]);
		return 1;
	}
	table = argv[argc - 3];
	count = atoi(argv[argc - 2]);
	pause_ms = atoi(argv[argc - 1]);
	if (count < 1)
		fail("invalid count", argv[argc - 2]);
	times = malloc(count * sizeof(*times));

	conn = postgres_connect();
	if (use_stream)
	{
		redis = redis_connect(argv[2]);
		snprintf(sql, sizeof(sql),
				 "SELECT 1 FROM %s"
				 " WHERE channel_id = $1 AND telegram_message_id = $2::bigint",
				 table);
		postgres_prepare(conn, "find", sql);
	}
	else
	{
		snprintf(sql, sizeof(sql),
				 "INSERT INTO %s (id, channel_id, telegram_message_id, content,"
				 " media_urls, posted_at, created_at, telegram_post_url, has_media, is_edited,"
				 " views_count, forwards_count, reactions_count)"
				 " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
				 table);
		postgres_prepare(conn, "insert", sql);
	}

	for (int i = 0; i < count; i++)
	{
		Post post;
		double start;

		make_post(&post, first + i);
		usleep(pause_ms * 1000);
		start = seconds_now();
		if (use_stream)
		{
			append_entry(redis, argv[3], &post);
			freeReplyObject(redis_next_reply(redis));
			while (!row_is_there(conn, &post))
				if (seconds_now() - start > TIMEOUT_SECONDS)
					fail("an entry did not become a row", "timeout");
		}
		else
			insert_row(conn, &post);
		times[i] = seconds_now() - start;
	}

	printf("{");
	print_times(times, count);
	printf("}\n");
	PQfinish(conn);
	if (redis)
		redisFree(redis);
	free(times);
	return 0;
}
