/*-------------------------------------------------------------------------
 *
 * client.c
 *		The competitor: a stand-alone consumer, hiredis and libpq.
 *
 * Usage: client REDIS_PORT STREAM GROUP TABLE BATCH [follow]
 *
 * Drains the stream into the table as a good engineer would write it by hand,
 * and ends, or with "follow" waits for more until it is killed:
 *
 *	- XREADGROUP COUNT 1000 and one prepared INSERT ... SELECT FROM unnest(...)
 *	  ON CONFLICT DO UPDATE per batch, a transaction of its own;
 *	- arrays in the binary format, filled straight from the reply: no quoting,
 *	  no copy in between, numbers and booleans already converted;
 *	- while the server runs the statement, Redis prepares the next batch and
 *	  this process parses it;
 *	- one XACK for all IDs after the commit, in the same write as the next
 *	  XREADGROUP;
 *	- a read that blocks only when there is nothing in hand and all is
 *	  acknowledged.
 *
 * What it leaves out is in its favor: no reconnecting, no entry that cannot be
 * applied, no key twice in one batch, no redelivery.  Any error ends it.
 *
 * The last line of its output is a JSON object with what it measured.
 *
 *-------------------------------------------------------------------------
 */
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>

#include <arpa/inet.h>

#include "common.h"

#define CONSUMER     "bench"
#define ARRAY_HEADER 20

/* OIDs of pg_type.dat, which never change */
#define BOOLOID       16
#define INT8OID       20
#define TEXTOID       25
#define JSONBOID      3802
#define BOOLARRAYOID  1000
#define TEXTARRAYOID  1009
#define INT8ARRAYOID  1016
#define JSONBARRAYOID 3807

typedef struct Column
{
	const char *field; /* name of the entry's field; NULL: its ID */
	const char *alias; /* another name of it, or NULL */
	uint32_t element_type;
	Oid array_type;
	char *data; /* a one-dimensional array, binary format */
	size_t length;
	size_t capacity;
	bool has_null;
} Column;

/* In the order of the parameters of the statement below */
static Column columns[] = {{NULL, NULL, TEXTOID, TEXTARRAYOID}, /* the ID of the entry */
						   {"post_id", "id", TEXTOID, TEXTARRAYOID},
						   {"channel_id", NULL, TEXTOID, TEXTARRAYOID},
						   {"telegram_message_id", "tg_message_id", INT8OID, INT8ARRAYOID},
						   {"text", "content", TEXTOID, TEXTARRAYOID},
						   {"urls", "media_urls", JSONBOID, JSONBARRAYOID},
						   {"posted_at", NULL, TEXTOID, TEXTARRAYOID},
						   {"occurred_at", "created_at", TEXTOID, TEXTARRAYOID},
						   {"telegram_post_url", "url", TEXTOID, TEXTARRAYOID},
						   {"has_media", NULL, BOOLOID, BOOLARRAYOID},
						   {"is_edited", NULL, BOOLOID, BOOLARRAYOID},
						   {"views_count", NULL, INT8OID, INT8ARRAYOID},
						   {"forwards_count", NULL, INT8OID, INT8ARRAYOID},
						   {"reactions_count", NULL, INT8OID, INT8ARRAYOID}};

#define NUM_COLUMNS ((int) (sizeof(columns) / sizeof(columns[0])))

/* %s is the table; the merge rules are those of the pipeline "posts" */
static const char insert_template[] =
	"INSERT INTO %s AS t (entry_id, id, channel_id, telegram_message_id, content,"
	" media_urls, posted_at, created_at, telegram_post_url, has_media, is_edited,"
	" views_count, forwards_count, reactions_count)"
	" SELECT entry_id, id, channel_id, message_id, content, media_urls,"
	" posted_at::timestamptz, coalesce(created_at::timestamptz, now()), url,"
	" has_media, is_edited, coalesce(views, 0), coalesce(forwards, 0),"
	" coalesce(reactions, 0)"
	" FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[],"
	" $6::jsonb[], $7::text[], $8::text[], $9::text[], $10::boolean[],"
	" $11::boolean[], $12::bigint[], $13::bigint[], $14::bigint[])"
	" AS e (entry_id, id, channel_id, message_id, content, media_urls, posted_at,"
	" created_at, url, has_media, is_edited, views, forwards, reactions)"
	" ON CONFLICT (channel_id, telegram_message_id) DO UPDATE SET"
	" entry_id = excluded.entry_id, content = excluded.content,"
	" media_urls = coalesce(excluded.media_urls, t.media_urls),"
	" posted_at = coalesce(excluded.posted_at, t.posted_at),"
	" telegram_post_url = coalesce(excluded.telegram_post_url, t.telegram_post_url),"
	" has_media = coalesce(excluded.has_media, t.has_media),"
	" is_edited = coalesce(excluded.is_edited, t.is_edited),"
	" views_count = greatest(excluded.views_count, t.views_count),"
	" forwards_count = greatest(excluded.forwards_count, t.forwards_count),"
	" reactions_count = greatest(excluded.reactions_count, t.reactions_count)";

/*----------
 * Arrays
 *----------
 */

/* Returns where to write "size" more bytes. */
static inline char *
column_extend(Column *column, size_t size)
{
	char *end;

	if (column->length + size > column->capacity)
	{
		column->capacity = (column->length + size) * 2;
		column->data = realloc(column->data, column->capacity);
		if (column->data == NULL)
			fail("could not build a batch", "out of memory");
	}
	end = column->data + column->length;
	column->length += size;
	return end;
}

static inline void
put_int32(char *out, uint32_t value)
{
	value = htonl(value);
	memcpy(out, &value, sizeof(value));
}

static void
columns_reset(void)
{
	for (int i = 0; i < NUM_COLUMNS; i++)
	{
		columns[i].length = 0;
		columns[i].has_null = false;
		column_extend(&columns[i], ARRAY_HEADER);
	}
}

/* The header comes last: only now is it known whether there is a NULL. */
static void
columns_finish(uint32_t entries)
{
	for (int i = 0; i < NUM_COLUMNS; i++)
	{
		char *header = columns[i].data;

		put_int32(header, 1); /* dimensions */
		put_int32(header + 4, columns[i].has_null);
		put_int32(header + 8, columns[i].element_type);
		put_int32(header + 12, entries);
		put_int32(header + 16, 1); /* lower bound */
	}
}

static void
column_add(Column *column, const redisReply *value)
{
	char *out;

	if (value == NULL || value->len == 0)
	{
		column->has_null = true;
		put_int32(column_extend(column, 4), (uint32_t) -1);
		return;
	}
	switch (column->element_type)
	{
		case TEXTOID:
			out = column_extend(column, 4 + value->len);
			put_int32(out, value->len);
			memcpy(out + 4, value->str, value->len);
			break;
		case JSONBOID:
			out = column_extend(column, 5 + value->len);
			put_int32(out, value->len + 1);
			out[4] = 1; /* version of the format */
			memcpy(out + 5, value->str, value->len);
			break;
		case BOOLOID:
			out = column_extend(column, 5);
			put_int32(out, 1);
			out[4] = strchr("tT1yY", value->str[0]) != NULL;
			break;
		case INT8OID:
		{
			char *end;
			long long number = strtoll(value->str, &end, 10);

			if (*end != '\0')
				fail("invalid number", value->str);
			out = column_extend(column, 12);
			put_int32(out, 8);
			put_int32(out + 4, (uint32_t) ((uint64_t) number >> 32));
			put_int32(out + 8, (uint32_t) number);
			break;
		}
	}
}

/*
 * Find a column's value among the fields of an entry.  All entries of one
 * producer have the same fields in the same order, so the place where the
 * field was last time is tried first.
 */
static const redisReply *
find_field(const redisReply *fields, int column, size_t *places)
{
	const char *name = columns[column].field;
	const char *alias = columns[column].alias;
	size_t place = places[column];

	if (place + 1 < fields->elements && strcmp(fields->element[place]->str, name) == 0)
		return fields->element[place + 1];
	for (place = 0; place + 1 < fields->elements; place += 2)
	{
		const char *field = fields->element[place]->str;

		if (strcmp(field, name) == 0 || (alias && strcmp(field, alias) == 0))
		{
			places[column] = place;
			return fields->element[place + 1];
		}
	}
	return NULL;
}

/* Fill the arrays from the entries of one XREADGROUP. */
static void
build_batch(const redisReply *entries)
{
	static size_t places[NUM_COLUMNS];

	columns_reset();
	for (size_t i = 0; i < entries->elements; i++)
	{
		const redisReply *fields = entries->element[i]->element[1];

		column_add(&columns[0], entries->element[i]->element[0]);
		for (int c = 1; c < NUM_COLUMNS; c++)
			column_add(&columns[c], find_field(fields, c, places));
	}
	columns_finish(entries->elements);
}

/*----------
 * Redis
 *----------
 */

static void
redis_flush(redisContext *redis)
{
	int done = 0;

	while (!done)
		if (redisBufferWrite(redis, &done) != REDIS_OK)
			fail("could not write to Redis", redis->errstr);
}

/* The entries of an XREADGROUP reply, or NULL when the stream is drained */
static const redisReply *
reply_entries(const redisReply *reply)
{
	if (reply->type != REDIS_REPLY_ARRAY || reply->elements == 0)
		return NULL;
	return reply->element[0]->element[1];
}

/* Queue one XACK for all entries. The IDs are taken from the reply in place. */
static void
append_xack(redisContext *redis, const char *stream, const char *group, const redisReply *entries)
{
	size_t count = entries->elements + 3;
	const char **args = malloc(count * sizeof(*args));
	size_t *lengths = malloc(count * sizeof(*lengths));

	args[0] = "XACK";
	args[1] = stream;
	args[2] = group;
	for (size_t i = 0; i < 3; i++)
		lengths[i] = strlen(args[i]);
	for (size_t i = 0; i < entries->elements; i++)
	{
		args[i + 3] = entries->element[i]->element[0]->str;
		lengths[i + 3] = entries->element[i]->element[0]->len;
	}
	if (redisAppendCommandArgv(redis, count, args, lengths) != REDIS_OK)
		fail("could not queue XACK", redis->errstr);
	free(args);
	free(lengths);
}

/*----------
 * PostgreSQL
 *----------
 */

/* Send the batch in the arrays; the server has it all when this returns. */
static void
send_batch(PGconn *conn)
{
	const char *values[NUM_COLUMNS];
	int lengths[NUM_COLUMNS];
	int formats[NUM_COLUMNS];

	for (int i = 0; i < NUM_COLUMNS; i++)
	{
		values[i] = columns[i].data;
		lengths[i] = columns[i].length;
		formats[i] = 1;
	}
	if (!PQsendQueryPrepared(conn, "upsert", NUM_COLUMNS, values, lengths, formats, 0) ||
		PQflush(conn) != 0)
		fail("could not send a batch", PQerrorMessage(conn));
}

static void
wait_commit(PGconn *conn)
{
	PGresult *result;

	while ((result = PQgetResult(conn)) != NULL)
	{
		if (PQresultStatus(result) != PGRES_COMMAND_OK)
			fail("a batch failed", PQresultErrorMessage(result));
		PQclear(result);
	}
}

int
main(int argc, char **argv)
{
	const char *stream;
	const char *group;
	const char *batch_size;
	bool follow = argc == 7 && strcmp(argv[6], "follow") == 0;
	bool acked = true; /* no XACK is under way */
	redisContext *redis;
	PGconn *conn;
	redisReply *reply;
	const redisReply *entries;
	double start;
	double elapsed;
	double cpu;
	long total = 0;
	struct rusage usage;
	char sql[sizeof(insert_template) + 256];

	if (argc != 6 && !follow)
	{
		fprintf(stderr, "usage: %s REDIS_PORT STREAM GROUP TABLE BATCH [follow]\n", argv[0]);
		return 1;
	}
	stream = argv[2];
	group = argv[3];
	batch_size = argv[5];

	start = seconds_now();
	redis = redis_connect(argv[1]);
	conn = postgres_connect();
	snprintf(sql, sizeof(sql), insert_template, argv[4]);
	postgres_prepare(conn, "upsert", sql);

#define APPEND_READ(block)                                                                    \
	redisAppendCommand(redis, "XREADGROUP GROUP %s %s COUNT %s " block "STREAMS %s >", group, \
					   CONSUMER, batch_size, stream)

	APPEND_READ("");
	reply = redis_next_reply(redis);
	APPEND_READ("");
	redis_flush(redis);
	if ((entries = reply_entries(reply)) != NULL)
		build_batch(entries);
	for (;;)
	{
		redisReply *next_reply;
		const redisReply *next;

		if (entries == NULL)
		{
			if (!acked)
				freeReplyObject(redis_next_reply(redis));
			acked = true;
			if (!follow)
				break;
			/* Something may have come since the last read was sent; else wait for it. */
			freeReplyObject(reply);
			reply = redis_next_reply(redis);
			while ((entries = reply_entries(reply)) == NULL)
			{
				freeReplyObject(reply);
				APPEND_READ("BLOCK 1000 ");
				reply = redis_next_reply(redis);
			}
			build_batch(entries);
			APPEND_READ("");
			redis_flush(redis);
		}
		send_batch(conn);
		/*
		 * While the server works on this batch, parse the next one and fill
		 * the arrays with it: libpq has sent what was in them.  The reply to
		 * the last XACK is fetched only here, because Redis sends it together
		 * with the reply to XREADGROUP and to wait for that would leave the
		 * server idle.
		 */
		if (!acked)
			freeReplyObject(redis_next_reply(redis));
		next_reply = redis_next_reply(redis);
		if ((next = reply_entries(next_reply)) != NULL)
			build_batch(next);
		wait_commit(conn);

		append_xack(redis, stream, group, entries);
		acked = false;
		APPEND_READ("");
		redis_flush(redis);
		total += entries->elements;
		freeReplyObject(reply);
		reply = next_reply;
		entries = next;
	}
	elapsed = seconds_now() - start;

	getrusage(RUSAGE_SELF, &usage);
	cpu = usage.ru_utime.tv_sec + usage.ru_utime.tv_usec / 1e6 + usage.ru_stime.tv_sec +
		  usage.ru_stime.tv_usec / 1e6;
	printf("{\"entries\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.3f,"
		   " \"backend_cpu_seconds\": %.3f}\n",
		   total, elapsed, cpu, process_cpu_seconds(PQbackendPID(conn)));

	PQfinish(conn);
	redisFree(redis);
	return 0;
}
