/*-------------------------------------------------------------------------
 *
 * generate.c
 *		Write the same posts twice: as XADD commands and as COPY rows.
 *
 * Usage: generate ENTRIES SEED STREAM FORMAT VERSION FIRST RESP_FILE COPY_FILE
 *
 * RESP_FILE is for "redis-cli --pipe", COPY_FILE for COPY ... FROM in text
 * format.  Both hold the same values in the same order, so that what a
 * consumer of the stream leaves in the table can be compared with what COPY
 * leaves, row by row (but for the ID of the entry, which Redis gives: COPY gets
 * one of the same form).  The same arguments give the same bytes on every
 * machine: the random numbers are our own, not the C library's.
 *
 * A post is mostly Russian text with emoji, about 900 bytes as an entry.
 * FORMAT is how producers write it, and all three end in the same row:
 *
 *		A	flat: a field of the entry for each value, as the batch publisher
 *		B	one field "data" with the event as JSON, as the event publisher
 *		C	an envelope of four fields and "data" with the table's own names,
 *			as the synchronous adapter (dedup_key is random, not a checksum)
 *
 * VERSION 2 is a later one of the same posts: the text is longer, more have
 * seen it, it is marked as edited.  Keys never repeat within one run; FIRST is
 * the number of the first post, so that a large number of posts can be made
 * piece by piece.
 *
 *-------------------------------------------------------------------------
 */
#include <time.h>

#include "words.h"

#define CHANNELS        50
#define UUID_LENGTH     36
#define TEXT_MIN_BYTES  300
#define TEXT_SPREAD     450
#define UPDATED         " (обновлено)"
#define UPDATED_AFTER   (24 * 3600)
#define FIRST_POST_TIME 1761685200 /* 2025-10-28 21:00:00 UTC */

typedef struct Post
{
	char entry_id[32];
	char post_id[UUID_LENGTH + 1];
	const char *channel_id;
	char message_id[24];
	char text[TEXT_MIN_BYTES + TEXT_SPREAD + MAX_WORD_BYTES + sizeof(UPDATED)];
	char urls[128];
	char posted_at[40];
	char occurred_at[40];
	char url[80];
	const char *has_media;
	const char *is_edited;
	char views[24];
	char forwards[24];
	char reactions[24];
	char dedup_key[17];
} Post;

/* Of each value: the names in formats A and B and in format C, and whether JSON has it bare. */
typedef struct Field
{
	const char *event_name;
	const char *table_name;
	const char *value;
	int bare;
} Field;

#define NUM_FIELDS 13

static char channels[CHANNELS][UUID_LENGTH + 1];

static void
random_uuid(char *out)
{
	uint64_t a = random_next();
	uint64_t b = random_next();

	snprintf(out, UUID_LENGTH + 1, "%08x-%04x-4%03x-%04x-%012llx", (unsigned int) (a >> 32),
			 (unsigned int) (a >> 16) & 0xffff, (unsigned int) a & 0xfff,
			 ((unsigned int) (b >> 48) & 0x3fff) | 0x8000,
			 (unsigned long long) (b & UINT64_C(0xffffffffffff)));
}

static void
format_time(char *out, size_t size, time_t when, int offset_hours, const char *zone)
{
	struct tm broken;
	char stamp[32];

	when += offset_hours * 3600;
	gmtime_r(&when, &broken);
	strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &broken);
	snprintf(out, size, "%s%s", stamp, zone);
}

/* Both versions of a post take the same random numbers. */
static void
make_post(Post *post, long number, int version)
{
	unsigned int channel = random_below(CHANNELS);
	time_t when = FIRST_POST_TIME + number;
	long entry_time = FIRST_POST_TIME + number / 50000 + (version - 1) * UPDATED_AFTER;

	snprintf(post->entry_id, sizeof(post->entry_id), "%ld%03ld-%ld", entry_time, number / 50 % 1000,
			 number % 50);
	random_uuid(post->post_id);
	post->channel_id = channels[channel];
	snprintf(post->message_id, sizeof(post->message_id), "%ld", number + 1);
	random_text(post->text, TEXT_MIN_BYTES + random_below(TEXT_SPREAD));
	if (random_below(3) == 0)
		snprintf(post->urls, sizeof(post->urls), "[\"https://example.com/photo/%ld.jpg\"]", number);
	else
		strcpy(post->urls, "[]");
	/* Producers write the channel's own zone here and UTC there. */
	format_time(post->posted_at, sizeof(post->posted_at), when, 3, "+03:00");
	format_time(post->occurred_at, sizeof(post->occurred_at), when + 5, 0, "Z");
	snprintf(post->url, sizeof(post->url), "https://t.me/channel_%u/%ld", channel, number + 1);
	post->has_media = random_below(2) ? "true" : "false";
	post->is_edited = random_below(10) && version == 1 ? "false" : "true";
	snprintf(post->views, sizeof(post->views), "%u", random_below(50000) + 100 * (version - 1));
	snprintf(post->forwards, sizeof(post->forwards), "%u", random_below(500));
	snprintf(post->reactions, sizeof(post->reactions), "%u", random_below(900));
	snprintf(post->dedup_key, sizeof(post->dedup_key), "%016llx",
			 (unsigned long long) random_next());
	if (version > 1)
		strcat(post->text, UPDATED);
}

static void
list_fields(const Post *post, Field *fields)
{
	const Field list[NUM_FIELDS] = {
		{"post_id", "id", post->post_id, 0},
		{"channel_id", "channel_id", post->channel_id, 0},
		{"telegram_message_id", "telegram_message_id", post->message_id, 1},
		{"text", "content", post->text, 0},
		{"urls", "media_urls", post->urls, 1},
		{"posted_at", "posted_at", post->posted_at, 0},
		{"occurred_at", "created_at", post->occurred_at, 0},
		{"telegram_post_url", "telegram_post_url", post->url, 0},
		{"has_media", "has_media", post->has_media, 1},
		{"is_edited", "is_edited", post->is_edited, 1},
		{"views_count", "views_count", post->views, 1},
		{"forwards_count", "forwards_count", post->forwards, 1},
		{"reactions_count", "reactions_count", post->reactions, 1}};

	memcpy(fields, list, sizeof(list));
}

/* Append a JSON string: of what has to be escaped, words hold quotes and line feeds only. */
static char *
put_json_string(char *out, const char *value)
{
	*out++ = '"';
	for (const char *c = value; *c; c++)
	{
		if (*c == '"' || *c == '\n')
			*out++ = '\\';
		*out++ = *c == '\n' ? 'n' : *c;
	}
	*out++ = '"';
	return out;
}

/* The event as a JSON object, as json.dumps of Python writes it. */
static const char *
make_json(const Field *fields, int table_names, const char *prefix)
{
	static char json[8192];
	char *out = stpcpy(json, prefix);

	for (int i = 0; i < NUM_FIELDS; i++)
	{
		if (out[-1] != '{')
			out = stpcpy(out, ", ");
		out = put_json_string(out, table_names ? fields[i].table_name : fields[i].event_name);
		out = stpcpy(out, ": ");
		if (fields[i].bare)
			out = stpcpy(out, fields[i].value);
		else
			out = put_json_string(out, fields[i].value);
	}
	strcpy(out, "}");
	return json;
}

static void
write_pair(FILE *out, const char *name, const char *value)
{
	write_bulk(out, name);
	write_bulk(out, value);
}

static void
write_entry(FILE *out, const char *stream, char format, const Post *post)
{
	Field fields[NUM_FIELDS];

	list_fields(post, fields);
	switch (format)
	{
		case 'A':
			write_xadd(out, stream, 2 * (NUM_FIELDS + 1));
			write_pair(out, "schema_version", "v1");
			for (int i = 0; i < NUM_FIELDS; i++)
				write_pair(out, fields[i].event_name, fields[i].value);
			break;
		case 'B':
			write_xadd(out, stream, 2);
			write_pair(out, "data", make_json(fields, 0, "{\"schema_version\": \"v1\""));
			break;
		case 'C':
			write_xadd(out, stream, 2 * 5);
			write_pair(out, "event_type", "post.created");
			write_pair(out, "timestamp", post->occurred_at);
			write_pair(out, "source", "sync_adapter");
			write_pair(out, "dedup_key", post->dedup_key);
			write_pair(out, "data", make_json(fields, 1, "{"));
			break;
	}
}

/* Columns in the order in which Bench::Posts names them. */
static void
write_row(FILE *out, const Post *post)
{
	Field fields[NUM_FIELDS];

	list_fields(post, fields);
	fputs(post->entry_id, out);
	for (int i = 0; i < NUM_FIELDS; i++)
	{
		putc('\t', out);
		write_copy_value(out, fields[i].value);
	}
	putc('\n', out);
}

int
main(int argc, char **argv)
{
	long entries;
	uint64_t seed;
	char format;
	int version;
	long first;
	FILE *resp;
	FILE *copy;

	if (argc != 9 || strlen(argv[4]) != 1 || strchr("ABC", argv[4][0]) == NULL)
	{
		fprintf(stderr, "usage: %s ENTRIES SEED STREAM A|B|C VERSION FIRST RESP_FILE COPY_FILE\n",
				argv[0]);
		return 1;
	}
	entries = strtol(argv[1], NULL, 10);
	seed = strtoull(argv[2], NULL, 10);
	format = argv[4][0];
	version = atoi(argv[5]);
	first = strtol(argv[6], NULL, 10);
	resp = open_output(argv[7]);
	copy = open_output(argv[8]);

	random_seed(seed);
	for (int i = 0; i < CHANNELS; i++)
		random_uuid(channels[i]);
	if (first > 0)
		random_seed(seed + (uint64_t) first * 1000003);
	for (long number = first; number < first + entries; number++)
	{
		Post post;

		make_post(&post, number, version);
		write_entry(resp, argv[3], format, &post);
		write_row(copy, &post);
	}
	close_output(resp, argv[7]);
	close_output(copy, argv[8]);
	return 0;
}
