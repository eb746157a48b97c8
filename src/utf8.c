/*
 * utf8.c
 *		Is it UTF-8?
 *
 * The server's own check goes byte by byte through what is not ASCII, and each step waits for the one
 * before.  Here ASCII and characters of two bytes (Latin, Greek, Cyrillic, Hebrew, Arabic) are told eight
 * bytes at a time; longer characters are left to the server's function.
 */
#include "utf8.h"

#include "mb/pg_wchar.h"
#include "port/pg_bitutils.h"
#include "port/pg_bswap.h"

#include "word.h"

/* Eight bytes, the first one in the lowest bits. */
static inline uint64
load(const char *p)
{
#ifdef WORDS_BIGENDIAN
	return pg_bswap64(pp_word_at(p));
#else
	return pp_word_at(p);
#endif
}

/*
 * The highest bits of the bytes of a word that are wrong, if it is to have nothing but ASCII without a NUL and
 * characters of two bytes.  *expected: has such a bit for a first byte that is to end a character; then for
 * all such bytes, and *next for the first byte of the next word.
 */
static inline uint64
find_wrong(uint64 word, uint64 *expected, uint64 *next)
{
	uint64 second_bit = word << 1;
	uint64 third_bit = word << 2;
	uint64 lead = word & second_bit & PP_HIGH_BITS;          /* 11xxxxxx */
	uint64 continuation = word & ~second_bit & PP_HIGH_BITS; /* 10xxxxxx */
	/* Not if bits 1 to 4 are all zero: C0 and C1 would begin characters that need one byte only. */
	uint64 long_enough = (word & (PP_EACH_BYTE * 0x1e)) + PP_EACH_BYTE * 0x7e;
	uint64 nul = (word - PP_EACH_BYTE) & ~word & PP_HIGH_BITS;

	*expected |= lead << 8;
	*next = lead >> 56;
	return (continuation ^ *expected) | (lead & third_bit) | (lead & ~long_enough) | nul;
}

/* Where the character at `p` ends; NULL: it is none, or a NUL. */
static inline const char *
end_of_character(const char *p, const char *end)
{
	int len;

	if (!IS_HIGHBIT_SET(*p))
		return *p == '\0' ? NULL : p + 1;
	len = pg_utf_mblen((const unsigned char *) p);
	return len > end - p || !pg_utf8_islegal((const unsigned char *) p, len) ? NULL : p + len;
}

/*
 * pp_utf8_is_valid
 *		Is the string UTF-8, without a NUL?
 */
bool
pp_utf8_is_valid(const char *p, size_t len)
{
	const char *end = p + len;
	uint64 next = 0;

	while (end - p >= PP_WORD)
	{
		uint64 expected = next;
		uint64 wrong = find_wrong(load(p), &expected, &next);
		int bit;

		if (wrong == 0)
		{
			p += PP_WORD;
			continue;
		}
		/* Up to the first wrong byte all is well.  There a longer character begins, or none. */
		bit = pg_rightmost_one_pos64(wrong);
		p += bit / BITS_PER_BYTE - (int) (expected >> bit & 1);
		if ((p = end_of_character(p, end)) == NULL)
			return false;
		next = 0;
	}
	p -= next != 0;
	while (p < end)
		if ((p = end_of_character(p, end)) == NULL)
			return false;
	return true;
}
