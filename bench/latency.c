/*-------------------------------------------------------------------------
 *
 * latency.c
 *		How long one post takes, seen from outside.
 *
 * Usage: latency stream REDIS_SOCKET STREAM TABLE COUNT
 *		  latency insert TABLE COUNT
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
 * The program prints a JSON object, times in milliseconds.
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "common.h"

#define PAUSE_MICROSECONDS 10000 /* for XACK and the next blocking read */
#define TIMEOUT_SECONDS    30
#define CHANNEL            "latency"
#define TEXT                                                                                                                                                \
	"релиз PostgreSQL технологии 🚀 инфляция прогноз эксперты open ставка рост прибыль "           \
	"рынок сегодня отчёт компания выпустила данные новость запуск акции релиз Redis source " \
	"технологии 📈 инфляция прогноз эксперты open ставка рост прибыль рынок сегодня отчёт"

typedef struct Post
{
	char message_id[24];
	char post_id[48];
	char url[64];
} Post;

static void
make_post(Post *post, long long number)
{
	snprintf(post->message_id, sizeof(post->message_id), "%lld", number);
	snprintf(post->post_id, sizeof(post->post_id), "00000000-0000-4000-8000-%012lld", number);
	snprintf(post->url, sizeof(post->url), "https://t.me/latency/%lld", number);
}

static void
add_entry(redisContext *redis, const char *stream, const Post *post)
{
	const char *args[] = {"XADD",
						  stream,
						  "*",
						  "schema_version",
						  "v1",
						  "post_id",
						  post->post_id,
						  "channel_id",
						  CHANNEL,
						  "telegram_message_id",
						  post->message_id,
						  "text",
						  TEXT,
						  "urls",
						  "[\"https://example.com/1.jpg\"]",
						  "posted_at",
						  "2025-10-29T00:00:00+03:00",
						  "occurred_at",
						  "2025-10-28T21:00:05Z",
						  "telegram_post_url",
						  post->url,
						  "has_media",
						  "true",
						  "is_edited",
						  "false",
						  "views_count",
						  "32957",
						  "forwards_count",
						  "265",
						  "reactions_count",
						  "341"};

	if (redisAppendCommandArgv(redis, sizeof(args) / sizeof(args[0]), args, NULL) != REDIS_OK)
		fail("could not queue XADD", redis->errstr);
	freeReplyObject(redis_next_reply(redis));
}

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

static int
compare_doubles(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return (x > y) - (x < y);
}

/* The smallest time that this share of all times does not exceed. */
static double
percentile(const double *sorted, int count, double share)
{
	int rank = (int) (share * count + 0.999999);

	return sorted[rank < 1 ? 0 : rank - 1];
}

int
main(int argc, char **argv)
{
	bool use_stream = argc == 6 && strcmp(argv[1], "stream") == 0;
	const char *table;
	int count;
	double *times;
	PGconn *conn;
	redisContext *redis = NULL;
	char sql[1024];
	long long first = (long long) time(NULL) * 1000; /* keys that no earlier run has used */

	if (!use_stream && !(argc == 4 && strcmp(argv[1], "insert") == 0))
	{
		fprintf(stderr,
				"usage: %s stream REDIS_SOCKET STREAM TABLE COUNT\n"
				"       %s insert TABLE COUNT\n",
				argv[0], argv[0]);
		return 1;
	}
	table = argv[argc - 2];
	count = atoi(argv[argc - 1]);
	if (count < 1)
		fail("invalid count", argv[argc - 1]);
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
		usleep(PAUSE_MICROSECONDS);
		start = seconds_now();
		if (use_stream)
		{
			add_entry(redis, argv[3], &post);
			while (!row_is_there(conn, &post))
				if (seconds_now() - start > TIMEOUT_SECONDS)
					fail("an entry did not become a row", "timeout");
		}
		else
			insert_row(conn, &post);
		times[i] = (seconds_now() - start) * 1000;
	}

	qsort(times, count, sizeof(*times), compare_doubles);
	printf("{\"count\": %d, \"p50\": %.4f, \"p99\": %.4f, \"max\": %.4f}\n", count,
		   percentile(times, count, 0.5), percentile(times, count, 0.99), times[count - 1]);
	PQfinish(conn);
	if (redis)
		redisFree(redis);
	free(times);
	return 0;
}
