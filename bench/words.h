/*-------------------------------------------------------------------------
 *
 * words.h
 *		What generate.c and items.c share: random text and numbers that are the
 *		same on every machine, and how both kinds of files are written.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BENCH_WORDS_H
#define BENCH_WORDS_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WORD_BYTES 64

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

static uint64_t random_state;

/* xorshift stays at 0 for ever when it starts there */
static inline void
random_seed(uint64_t seed)
{
	random_state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
}

/* xorshift64*: small, fast, and the same everywhere */
static inline uint64_t
random_next(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * UINT64_C(2685821657736338717);
}

/* A number from 0 to limit - 1. The high bits are the good ones. */
static inline unsigned int
random_below(unsigned int limit)
{
	return (unsigned int) ((random_next() >> 32) % limit);
}

/*
 * Words up to a length, with a new paragraph now and then.  The last word may reach beyond it by
 * MAX_WORD_BYTES.  Returns the length in bytes.
 */
static inline size_t
random_text(char *out, size_t target)
{
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
	return length;
}

/* A string of Redis's protocol */
static inline void
write_bulk(FILE *out, const char *value)
{
	fprintf(out, "$%zu\r\n%s\r\n", strlen(value), value);
}

/* The beginning of an XADD of so many strings, names and values. */
static inline void
write_xadd(FILE *out, const char *stream, size_t strings)
{
	fprintf(out, "*%zu\r\n$4\r\nXADD\r\n", strings + 3);
	write_bulk(out, stream);
	write_bulk(out, "*");
}

/* A value of COPY's text format: no word holds a tab or a backslash. */
static inline void
write_copy_value(FILE *out, const char *value)
{
	for (const char *line = strchr(value, '\n'); line; line = strchr(value, '\n'))
	{
		fwrite(value, 1, line - value, out);
		fputs("\\n", out);
		value = line + 1;
	}
	fputs(value, out);
}

static inline FILE *
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

static inline void
close_output(FILE *out, const char *path)
{
	if (ferror(out) || fclose(out) != 0)
	{
		fprintf(stderr, "could not write file \"%s\": %s\n", path, strerror(errno));
		exit(1);
	}
}

#endif /* BENCH_WORDS_H */
