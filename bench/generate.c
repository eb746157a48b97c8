/*-------------------------------------------------------------------------
 *
 * generate.c
 *		Write the same posts twice: as XADD commands and as COPY rows.
 *
 * Usage: generate ENTRIES SEED STREAM RESP_FILE COPY_FILE
 *
 * RESP_FILE is for "redis-cli --pipe", COPY_FILE for COPY ... FROM in text
 * format.  Both hold the same values in the same order, so that what a
 * consumer of the stream leaves in the table can be compared with what COPY
 * leaves, row by row (but for the ID of the entry, which Redis gives: COPY gets
 * one of the same form).  The same seed gives the same bytes on every machine:
 * the random numbers are our own, not the C library's.
 *
 * An entry is a flat post as the batch publisher writes it (format A): 14
 * fields, mostly Russian text with emoji, about 900 bytes.  Keys never repeat:
 * this measures the loading of new rows.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHANNELS        50
#define UUID_LENGTH     36
#define TEXT_MIN_BYTES  300
#define TEXT_SPREAD     450
#define FIRST_POST_TIME 1761685200 /* 2025-10-28 21:00:00 UTC */

static const char *const words[] = {"релиз",
									"PostgreSQL",
									"технологии",
									"инфляция",
									"прогноз",
									"эксперты",
									"open",
									"source",
									"ставка",
									"рынок",
									"прибыль",
									"рост",
									"сегодня",
									"данные",
									"отчёт",
									"новость",
									"запуск",
									"компания",
									"выпустила",
									"Redis",
									"акции",
									"«центральный банк»",
									"подробности,",
									"по ссылке:",
									"\"цитата\"",
									"🚀",
									"📈",
									"🔥",
									"не",
									"и",
									"в",
									"на"};

#define NUM_WORDS (sizeof(words) / sizeof(words[0]))

typedef struct Post
{
	char entry_id[32];
	char post_id[UUID_LENGTH + 1];
	const char *channel_id;
	char message_id[24];
	char text[TEXT_MIN_BYTES + TEXT_SPREAD + 64];
	char urls[128];
	char posted_at[40];
	char occurred_at[40];
	char url[80];
	const char *has_media;
	const char *is_edited;
	char views[24];
	char forwards[24];
	char reactions[24];
} Post;

static uint64_t random_state;
static char channels[CHANNELS][UUID_LENGTH + 1];

/* xorshift64*: small, fast, and the same everywhere */
static uint64_t
random_next(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * UINT64_C(2685821657736338717);
}

/* A number from 0 to limit - 1. The high bits are the good ones. */
static unsigned int
random_below(unsigned int limit)
{
	return (unsigned int) ((random_next() >> 32) % limit);
}

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

/* Words up to a random length, with a new paragraph now and then. */
static void
random_text(char *out)
{
	size_t target = TEXT_MIN_BYTES + random_below(TEXT_SPREAD);
	size_t length = 0;

	while (length < target)
	{
		const char *word = words[random_below(NUM_WORDS)];
		size_t word_length = strlen(word);

		if (length > 0)
			out[length++] = random_below(40) == 0 ? '\n' : ' ';
		memcpy(out + length, word, word_length);
		length += word_length;
	}
	out[length] = '\0';
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

static void
make_post(Post *post, long number)
{
	unsigned int channel = random_below(CHANNELS);
	time_t when = FIRST_POST_TIME + number;

	snprintf(post->entry_id, sizeof(post->entry_id), "%ld%03ld-%ld",
			 (long) FIRST_POST_TIME + number / 50000, number / 50 % 1000, number % 50);
	random_uuid(post->post_id);
	post->channel_id = channels[channel];
	snprintf(post->message_id, sizeof(post->message_id), "%ld", number + 1);
	random_text(post->text);
	if (random_below(3) == 0)
		snprintf(post->urls, sizeof(post->urls), "[\"https://example.com/photo/%ld.jpg\"]", number);
	else
		strcpy(post->urls, "[]");
	/* Producers write the channel's own zone here and UTC there. */
	format_time(post->posted_at, sizeof(post->posted_at), when, 3, "+03:00");
	format_time(post->occurred_at, sizeof(post->occurred_at), when + 5, 0, "Z");
	snprintf(post->url, sizeof(post->url), "https://t.me/channel_%u/%ld", channel, number + 1);
	post->has_media = random_below(2) ? "true" : "false";
	post->is_edited = random_below(10) ? "false" : "true";
	snprintf(post->views, sizeof(post->views), "%u", random_below(50000));
	snprintf(post->forwards, sizeof(post->forwards), "%u", random_below(500));
	snprintf(post->reactions, sizeof(post->reactions), "%u", random_below(900));
}

static void
write_bulk(FILE *out, const char *value)
{
	fprintf(out, "$%zu\r\n%s\r\n", strlen(value), value);
}

static void
write_entry(FILE *out, const char *stream, const Post *post)
{
	const char *const fields[] = {"schema_version",
								  "v1",
								  "post_id",
								  post->post_id,
								  "channel_id",
								  post->channel_id,
								  "telegram_message_id",
								  post->message_id,
								  "text",
								  post->text,
								  "urls",
								  post->urls,
								  "posted_at",
								  post->posted_at,
								  "occurred_at",
								  post->occurred_at,
								  "telegram_post_url",
								  post->url,
								  "has_media",
								  post->has_media,
								  "is_edited",
								  post->is_edited,
								  "views_count",
								  post->views,
								  "forwards_count",
								  post->forwards,
								  "reactions_count",
								  post->reactions};
	const size_t num_fields = sizeof(fields) / sizeof(fields[0]);

	fprintf(out, "*%zu\r\n$4\r\nXADD\r\n", num_fields + 3);
	write_bulk(out, stream);
	write_bulk(out, "*");
	for (size_t i = 0; i < num_fields; i++)
		write_bulk(out, fields[i]);
}

/* Columns in the order in which bench/run names them in COPY. */
static void
write_row(FILE *out, const Post *post)
{
	fprintf(out, "%s\t%s\t%s\t%s\t", post->entry_id, post->post_id, post->channel_id,
			post->message_id);
	for (const char *c = post->text; *c; c++)
	{
		if (*c == '\n')
			fputs("\\n", out);
		else
			putc(*c, out); /* no word holds a tab or a backslash */
	}
	fprintf(out, "\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", post->urls, post->posted_at,
			post->occurred_at, post->url, post->has_media, post->is_edited, post->views,
			post->forwards, post->reactions);
}

static FILE *
open_output(const char *path)
{
	FILE *out = fopen(path, "w");

	if (out == NULL)
	{
		fprintf(stderr, "could not create file \"%s\": %s\n", path, strerror(errno));
		exit(1);
	}
	setvbuf(out, NULL, _IOFBF, 1 << 20);
	return out;
}

static void
close_output(FILE *out, const char *path)
{
	if (ferror(out) || fclose(out) != 0)
	{
		fprintf(stderr, "could not write file \"%s\": %s\n", path, strerror(errno));
		exit(1);
	}
}

int
main(int argc, char **argv)
{
	long entries;
	FILE *resp;
	FILE *copy;

	if (argc != 6)
	{
		fprintf(stderr, "usage: %s ENTRIES SEED STREAM RESP_FILE COPY_FILE\n", argv[0]);
		return 1;
	}
	entries = strtol(argv[1], NULL, 10);
	/* xorshift stays at 0 for ever when it starts there */
	random_state = strtoull(argv[2], NULL, 10) * UINT64_C(0x9e3779b97f4a7c15) + 1;
	resp = open_output(argv[4]);
	copy = open_output(argv[5]);

	for (int i = 0; i < CHANNELS; i++)
		random_uuid(channels[i]);
	for (long number = 0; number < entries; number++)
	{
		Post post;

		make_post(&post, number);
		write_entry(resp, argv[3], &post);
		write_row(copy, &post);
	}
	close_output(resp, argv[4]);
	close_output(copy, argv[5]);
	return 0;
}
