/*-------------------------------------------------------------------------
 *
 * paced.c
 *		How long posts take that come at a given rate, seen from outside.
 *
 * Usage: paced REDIS_PORT STREAM TABLE RATE COUNT
 *
 * One process publishes: at the time at which a post is due, its number is
 * noted with the time, and XADD is sent.  When it is late, what is due goes in
 * one write.  The other process watches: every PAUSE_MICROSECONDS it asks for
 * the highest number that is visible, one look at the end of the primary key.
 * Rows become visible in the order of their numbers, because one worker applies
 * entries in the order of the stream, so all up to that number are there.  What
 * is taken for a post is the time from before XADD to that answer.
 *
 * The result is too high by the pause and a round trip at most, never too low;
 * "look_p50" and "look_p99" say how far apart the looks really were.  Nothing is
 * changed by the watching: there is no trigger, no lock and no write, only one
 * more session, which needs some percent of a core.
 *
 * The program prints a JSON object, times in milliseconds.
 *
 *-------------------------------------------------------------------------
 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "post.h"

#define PAUSE_MICROSECONDS 200
#define MAX_AT_ONCE        64
#define START_SECONDS      0.2 /* both processes are connected by then */
#define TIMEOUT_SECONDS    60  /* after the last post was due */
#define MAX_LOOKS          2000000

static void
sleep_until(double when)
{
	struct timespec time = {(time_t) when, (long) ((when - (time_t) when) * 1e9)};

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static void
publish(const char *port, const char *stream, long long first, int count, double rate,
		double start, volatile double *sent)
{
	redisContext *redis = redis_connect(port);
	int next = 0;

	while (next < count)
	{
		int at_once = 0;

		sleep_until(start + next / rate);
		while (next < count && at_once < MAX_AT_ONCE && start + next / rate <= seconds_now())
		{
			Post post;

			make_post(&post, first + next);
			sent[next] = seconds_now();
			append_entry(redis, stream, &post);
			next++;
			at_once++;
		}
		for (int i = 0; i < at_once; i++)
			freeReplyObject(redis_next_reply(redis));
	}
	redisFree(redis);
}

/* The highest number that is visible, or 0 */
static long long
look(PGconn *conn)
{
	const char *values[] = {CHANNEL};
	PGresult *result = PQexecPrepared(conn, "look", 1, values, NULL, NULL, 0);
	long long number;

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		fail("could not look for rows", PQerrorMessage(conn));
	number = PQntuples(result) == 1 ? atoll(PQgetvalue(result, 0, 0)) : 0;
	PQclear(result);
	return number;
}

int
main(int argc, char **argv)
{
	double rate;
	int count;
	int seen = 0;
	int looks = 0;
	long long first = first_number();
	double start;
	double last_look;
	double *times;
	double *gaps;
	volatile double *sent;
	char sql[512];
	PGconn *conn;
	pid_t producer;
	int status;

	if (argc != 6 || (rate = atof(argv[4])) <= 0 || (count = atoi(argv[5])) < 1)
	{
		fprintf(stderr, "usage: %s REDIS_PORT STREAM TABLE RATE COUNT\n", argv[0]);
		return 1;
	}
	times = malloc(count * sizeof(*times));
	gaps = malloc(MAX_LOOKS * sizeof(*gaps));
	sent = mmap(NULL, count * sizeof(*sent), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
				0);
	if (times == NULL || gaps == NULL || sent == MAP_FAILED)
		fail("could not start", "out of memory");

	start = seconds_now() + START_SECONDS;
	producer = fork();
	if (producer < 0)
		fail("could not start", "fork failed");
	if (producer == 0)
	{
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		publish(argv[1], argv[2], first, count, rate, start, sent);
		_exit(0);
	}

	/* The index and nothing else, however little is known about the table. */
	conn = postgres_connect();
	PQclear(PQexec(conn, "SET enable_seqscan = off; SET enable_bitmapscan = off;"
						 "SET plan_cache_mode = force_generic_plan"));
	snprintf(sql, sizeof(sql),
			 "SELECT telegram_message_id FROM %s WHERE channel_id = $1"
			 " ORDER BY telegram_message_id DESC LIMIT 1",
			 argv[3]);
	postgres_prepare(conn, "look", sql);

	last_look = seconds_now();
	while (seen < count)
	{
		long long number = look(conn);
		double now = seconds_now();

		if (looks < MAX_LOOKS)
			gaps[looks++] = now - last_look;
		last_look = now;
		for (; seen < count && first + seen <= number; seen++)
			times[seen] = now - sent[seen];
		if (now > start + count / rate + TIMEOUT_SECONDS)
			fail("an entry did not become a row", "timeout");
		usleep(PAUSE_MICROSECONDS);
	}
	if (waitpid(producer, &status, 0) != producer || status != 0)
		fail("could not publish", "the producer failed");

	printf("{\"rate\": %.1f, ", count > 1 ? (count - 1) / (sent[count - 1] - sent[0]) : rate);
	print_times(times, count);
	qsort(gaps, looks, sizeof(*gaps), compare_doubles);
	printf(", \"look_p50\": %.4f, \"look_p99\": %.4f}\n", percentile(gaps, looks, 0.5) * 1000,
		   percentile(gaps, looks, 0.99) * 1000);
	PQfinish(conn);
	return 0;
}
