/*
 * utf8.c
 *		Is it UTF-8?
 *
 * The server's own check goes byte by byte through what is not ASCII, and each step waits for the one
 * before.  Here sixteen bytes are looked at together, whatever they are, each with the three before it.
 * What is wrong is in section 3.9 of the Unicode standard, "Well-Formed UTF-8 Byte Sequences".
 */
#include "utf8.h"

#include "mb/pg_wchar.h"

#include "word.h"

#define BLOCK     16 /* bytes in a Bytes */
#define BEFORE    3  /* bytes before them that are looked at, too */
#define HEX(byte) ((signed char) 0x##byte)

/* Comparisons are of signed bytes, so that 80 to FF come before 00 to 7F; they make FF of what is true. */
typedef signed char Bytes __attribute__((vector_size(BLOCK)));

static inline Bytes
load(const char *p)
{
	Bytes bytes;

	memcpy(&bytes, p, sizeof(bytes));
	return bytes;
}

/* The bytes that are wrong where they are have the highest bit.  A character need not have ended. */
static inline Bytes
find_wrong(const char *p)
{
	Bytes byte = load(p);
	Bytes one_before = load(p - 1);
	Bytes two_before = load(p - 2);
	Bytes three_before = load(p - 3);
	Bytes continues = byte < HEX(C0);
	Bytes has_to = (one_before & (one_before >= HEX(C0))) | (two_before & (two_before >= HEX(E0))) |
				   (three_before & (three_before >= HEX(F0)));
	Bytes never =
		(byte == HEX(00)) | (byte == HEX(C0)) | (byte == HEX(C1)) | (byte & (byte >= HEX(F5)));
	/* In a longer form than needed, a surrogate, or above 10FFFF */
	Bytes not_after = ((one_before == HEX(E0)) & (byte < HEX(A0))) |
					  ((one_before == HEX(ED)) & (byte >= HEX(A0))) |
					  ((one_before == HEX(F0)) & (byte < HEX(90))) |
					  ((one_before == HEX(F4)) & (byte >= HEX(90)));

	return (continues ^ has_to) | never | not_after;
}

static inline bool
is_any(Bytes wrong)
{
	uint64 words[BLOCK / PP_WORD];

	memcpy(words, &wrong, sizeof(words));
	return ((words[0] | words[1]) & PP_HIGH_BITS) != 0;
}

/* Is the last of its characters, which are right so far, whole? */
static inline bool
is_whole(const char *end)
{
	const unsigned char *e = (const unsigned char *) end;

	return e[-1] < 0xC0 && e[-2] < 0xE0 && e[-3] < 0xF0;
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

/* Where the words of ASCII at the beginning end. */
static inline const char *
skip_ascii(const char *p, const char *end)
{
	while (end - p >= PP_WORD && !((pp_word_at(p) | (pp_word_at(p) - PP_EACH_BYTE)) & PP_HIGH_BITS))
		p += PP_WORD;
	return p;
}

/*
 * pp_utf8_is_valid
 *		Is the string UTF-8, without a NUL?
 */
bool
pp_utf8_is_valid(const char *p, size_t len)
{
	const char *end = p + len;
	char first[BEFORE + BLOCK] = "   ";
	Bytes wrong;

	p = skip_ascii(p, end);
	if (end - p < BEFORE + BLOCK)
	{
		while (p < end)
			if ((p = end_of_character(p, end)) == NULL)
				return false;
		return true;
	}
	memcpy(first + BEFORE, p, BLOCK);
	wrong = find_wrong(first + BEFORE);
	for (p += BLOCK; end - p > BLOCK; p += BLOCK)
		wrong |= find_wrong(p);
	wrong |= find_wrong(end - BLOCK); /* some of them for the second time */
	return !is_any(wrong) && is_whole(end);
}
