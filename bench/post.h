/*-------------------------------------------------------------------------
 *
 * post.h
 *		What latency.c and paced.c share: small flat posts of one channel, with
 *		keys that are numbers, and what is said about the times they took.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_POST_H
#define BENCH_POST_H

#include "common.h"

#define CHANNEL "latency"
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

static inline void
make_post(Post *post, long long number)
{
	snprintf(post->message_id, sizeof(post->message_id), "%lld", number);
	snprintf(post->post_id, sizeof(post->post_id), "00000000-0000-4000-8000-%012lld", number);
	snprintf(post->url, sizeof(post->url), "https://t.me/latency/%lld", number);
}

/* Queue the XADD of a post. */
static inline void
append_entry(redisContext *redis, const char *stream, const Post *post)
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
}

/* Keys that no earlier run has used */
static inline long long
first_number(void)
{
	return (long long) time(NULL) * 1000000;
}

static inline int
compare_doubles(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return (x > y) - (x < y);
}

/* The smallest time that this share of all times does not exceed. */
static inline double
percentile(const double *sorted, int count, double share)
{
	int rank = (int) (share * count + 0.999999);

	return sorted[rank < 1 ? 0 : rank - 1];
}

/* Sorts the times, in seconds, and prints what they are in milliseconds, as members of a JSON object. */
static inline void
print_times(double *times, int count)
{
	qsort(times, count, sizeof(*times), compare_doubles);
	printf("\"count\": %d, \"p50\": %.4f, \"p99\": %.4f, \"p999\": %.4f, \"max\": %.4f", count,
		   percentile(times, count, 0.5) * 1000, percentile(times, count, 0.99) * 1000,
		   percentile(times, count, 0.999) * 1000, times[count - 1] * 1000);
}

#endif /* BENCH_POST_H */
