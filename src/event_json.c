/*
 * event_json.c
 *		A JSON object in one pass.
 *
 * That is done for every entry of most producers, and jsonb_in() takes four times as long for it.  So are
 * arrays of a few strings, numbers, booleans and nulls.  All others, and objects in an object, are left to
 * jsonb_in(); and the whole text if there is an escape for a character that text cannot have, a number with
 * an exponent or of very many digits, or any error, so that there is one place that says what is wrong with
 * a text.
 */
#include "event_internal.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "word.h"

#define MAX_PAIRS         256
#define MAX_ELEMENTS      64
#define MAX_INTEGER_CHARS 18  /* so many always fit into 64 bits */
#define MAX_NUMBER_CHARS  100 /* so many always fit into a Numeric */

/* What is left of the text, which is valid UTF-8, and where strings without their escapes go. */
typedef struct Scan
{
	const char *at;
	const char *end;
	char *scratch; /* NULL: no string had an escape yet */
	char *scratch_at;
} Scan;

static inline void
skip_space(Scan *s)
{
	while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\t' || *s->at == '\r'))
		s->at++;
}

/* Takes this character, after white space. */
static inline bool
take(Scan *s, char c)
{
	skip_space(s);
	if (s->at == s->end || *s->at != c)
		return false;
	s->at++;
	return true;
}

/* Is one of these eight bytes a quote, a backslash or a control character? Never misses one. */
static inline bool
has_special(const char *p)
{
	uint64 word = pp_word_at(p);
	uint64 quote = word ^ (PP_EACH_BYTE * '"');
	uint64 backslash = word ^ (PP_EACH_BYTE * '\\');

	return (((quote - PP_EACH_BYTE) & ~quote) | ((backslash - PP_EACH_BYTE) & ~backslash) |
			((word - PP_EACH_BYTE * 0x20) & ~word)) &
		   PP_HIGH_BITS;
}

/* The first special character from `p` on. */
static inline const char *
find_special(const char *p, const char *end)
{
	while (end - p >= PP_WORD && !has_special(p))
		p += PP_WORD;
	while (p < end && *p != '"' && *p != '\\' && (unsigned char) *p >= 0x20)
		p++;
	return p;
}

static bool
take_hex4(Scan *s, pg_wchar *code)
{
	*code = 0;
	if (s->end - s->at < 4)
		return false;
	for (int i = 0; i < 4; i++)
	{
		char c = *s->at++;
		int digit = c >= '0' && c <= '9'   ? c - '0'
					: c >= 'a' && c <= 'f' ? c - 'a' + 10
					: c >= 'A' && c <= 'F' ? c - 'A' + 10
										   : -1;

		if (digit < 0)
			return false;
		*code = *code << 4 | (pg_wchar) digit;
	}
	return true;
}

/* After \u: one character, perhaps of two surrogates. */
static bool
take_unicode(Scan *s)
{
	pg_wchar code;
	pg_wchar low;

	if (!take_hex4(s, &code) || code == 0 || is_utf16_surrogate_second(code) ||
		GetDatabaseEncoding() != PG_UTF8)
		return false;
	if (is_utf16_surrogate_first(code))
	{
		if (s->end - s->at < 6 || s->at[0] != '\\' || s->at[1] != 'u')
			return false;
		s->at += 2;
		if (!take_hex4(s, &low) || !is_utf16_surrogate_second(low))
			return false;
		code = surrogate_pair_to_codepoint(code, low);
	}
	unicode_to_utf8(code, (unsigned char *) s->scratch_at);
	s->scratch_at += pg_utf_mblen((unsigned char *) s->scratch_at);
	return true;
}

/* After a backslash. */
static bool
take_escape(Scan *s)
{
	static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t";

	if (s->at == s->end)
		return false;
	if (*s->at == 'u')
	{
		s->at++;
		return take_unicode(s);
	}
	for (const char *e = escapes; *e != '\0'; e += 2)
		if (*s->at == e[0])
		{
			*s->scratch_at++ = e[1];
			s->at++;
			return true;
		}
	return false;
}

/* The rest of a string that has an escape, as a copy: what an escape means is never longer than itself. */
static bool
copy_string(Scan *s, PpString *string)
{
	char *copy;

	if (s->scratch == NULL)
		s->scratch = s->scratch_at = palloc(s->end - s->at);
	copy = s->scratch_at;
	for (;;)
	{
		const char *special = find_special(s->at, s->end);

		memcpy(s->scratch_at, s->at, special - s->at);
		s->scratch_at += special - s->at;
		if (special == s->end)
			return false;
		s->at = special + 1;
		if (*special == '"')
		{
			*string = (PpString){copy, s->scratch_at - copy};
			return true;
		}
		if (*special != '\\' || !take_escape(s))
			return false;
	}
}

/* A string: where it lies in the text, if it has no escape. */
static bool
take_string(Scan *s, PpString *string)
{
	const char *special;

	if (!take(s, '"'))
		return false;
	special = find_special(s->at, s->end);
	if (special == s->end || *special != '"')
		return copy_string(s, string);
	*string = (PpString){s->at, special - s->at};
	s->at = special + 1;
	return true;
}

static const char *
skip_digits(const char *p, const char *end)
{
	while (p < end && *p >= '0' && *p <= '9')
		p++;
	return p;
}

/* Where a JSON number without exponent that begins at `p` ends, *integer: without point; NULL: it is none. */
static const char *
end_of_number(const char *p, const char *end, bool *integer)
{
	const char *digits = p + (p < end && *p == '-');
	const char *start = digits;

	p = skip_digits(digits, end);
	if (p == digits || (*digits == '0' && p - digits > 1))
		return NULL;
	*integer = true;
	if (p < end && *p == '.')
	{
		*integer = false;
		start = p + 1;
		if ((p = skip_digits(start, end)) == start)
			return NULL;
	}
	return p;
}

/* Not one that may be out of range: what is wrong behind it would be told first. */
static bool
take_number(Scan *s, PpPair *pair)
{
	const char *start = s->at;
	bool integer;
	Numeric number;

	s->at = end_of_number(start, s->end, &integer);
	if (s->at == NULL || s->at - start > MAX_NUMBER_CHARS)
		return false;
	/* jsonb has 0 of -0. */
	if (integer && s->at - start <= MAX_INTEGER_CHARS && (start[0] != '-' || start[1] != '0'))
	{
		pair->type = PP_ISINTEGER;
		pair->value = (PpString){start, s->at - start};
		return true;
	}
	number = DatumGetNumeric(DirectFunctionCall3(
		numeric_in, CStringGetDatum(pnstrdup(start, s->at - start)), 0, Int32GetDatum(-1)));
	pair->type = JENTRY_ISNUMERIC;
	pair->value = (PpString){(char *) number, VARSIZE_ANY(number)};
	return true;
}

static bool
take_word(Scan *s, const char *word, JEntry type, PpPair *pair)
{
	size_t len = strlen(word);

	if ((size_t) (s->end - s->at) < len || memcmp(s->at, word, len) != 0)
		return false;
	s->at += len;
	pair->type = type;
	pair->value = (PpString){"", 0};
	return true;
}

/* Where the array or object that begins at `p` ends, if it is one; `end`: nowhere. */
static const char *
end_of_nested(const char *p, const char *end)
{
	int depth = 0;

	for (; p < end; p++)
	{
		if (*p == '"')
		{
			while ((p = find_special(p + 1, end)) < end && *p != '"')
				p += *p == '\\';
			if (p >= end)
				return end;
		}
		else if (*p == '[' || *p == '{')
			depth++;
		else if ((*p == ']' || *p == '}') && --depth == 0)
			return p + 1;
	}
	return end;
}

static bool take_value(Scan *s, PpPair *pair);

/* An array with neither arrays nor objects in it; NULL: it is not so simple. */
static Jsonb *
take_array(Scan *s)
{
	PpPair elements[MAX_ELEMENTS];
	int n = 0;

	if (!take(s, '['))
		return NULL;
	skip_space(s);
	if (s->at < s->end && *s->at != ']')
		do
		{
			skip_space(s);
			if (n == MAX_ELEMENTS || s->at == s->end || *s->at == '[' || *s->at == '{' ||
				!take_value(s, &elements[n++]))
				return NULL;
		} while (take(s, ','));
	return take(s, ']') ? pp_array_jsonb(elements, n) : NULL;
}

/* An array or an object; it lies in that around it just as it would lie alone. */
static bool
take_nested(Scan *s, PpPair *pair)
{
	const char *start = s->at;
	Jsonb *jb = take_array(s);

	if (jb == NULL)
	{
		s->at = end_of_nested(start, s->end);
		if (s->at == s->end)
			return false;
		jb = DatumGetJsonbP(
			DirectFunctionCall1(jsonb_in, CStringGetDatum(pnstrdup(start, s->at - start))));
	}
	pair->type = JENTRY_ISCONTAINER;
	pair->value = (PpString){VARDATA(jb), VARSIZE(jb) - VARHDRSZ};
	return true;
}

/* A word or number that goes on where it should have ended is refused by what is asked for next. */
static bool
take_value(Scan *s, PpPair *pair)
{
	skip_space(s);
	if (s->at == s->end)
		return false;
	switch (*s->at)
	{
		case '"':
			pair->type = JENTRY_ISSTRING;
			return take_string(s, &pair->value);
		case 't':
			return take_word(s, "true", JENTRY_ISBOOL_TRUE, pair);
		case 'f':
			return take_word(s, "false", JENTRY_ISBOOL_FALSE, pair);
		case 'n':
			return take_word(s, "null", JENTRY_ISNULL, pair);
		case '[':
		case '{':
			return take_nested(s, pair);
		default:
			return take_number(s, pair);
	}
}

/* The pairs of the object; -1: it is not so simple. */
static int
take_pairs(Scan *s, PpPair *pairs)
{
	int n = 0;

	if (!take(s, '{'))
		return -1;
	skip_space(s);
	if (s->at < s->end && *s->at == '"')
		do
		{
			if (n == MAX_PAIRS || !take_string(s, &pairs[n].name) || !take(s, ':') ||
				!take_value(s, &pairs[n]))
				return -1;
			pairs[n].position = n;
			n++;
		} while (take(s, ','));
	if (!take(s, '}'))
		return -1;
	skip_space(s);
	return s->at == s->end ? n : -1;
}

/*
 * pp_json_parse_object
 *		The object in `text`, which must be in the server's encoding and valid, and stay where it is; in
 *		the current memory context; NULL when there is none, or it is not so simple: jsonb_in() says
 *		which.  Throws what jsonb_in() says of an array or object in it.
 */
PpObject *
pp_json_parse_object(const char *text, size_t len)
{
	static PpNameOrder kept;
	Scan scan = {.at = text, .end = text + len};
	PpPair pairs[MAX_PAIRS];
	int n = take_pairs(&scan, pairs);

	return n < 0 ? NULL : pp_object_make(&kept, pp_names_are_kept(&kept, pairs, n), pairs, n);
}

/*
 * pp_json_parse_array
 *		As pp_json_parse_object(), of an array.
 */
Jsonb *
pp_json_parse_array(const char *text, size_t len)
{
	Scan scan = {.at = text, .end = text + len};
	Jsonb *jb = take_array(&scan);

	if (jb == NULL)
		return NULL;
	skip_space(&scan);
	return scan.at == scan.end ? jb : NULL;
}
