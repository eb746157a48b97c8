/*
 * word.h
 *		Eight bytes at a time, for what looks at every byte that is read.
 */
#ifndef PP_WORD_H
#define PP_WORD_H

#include "postpipe.h"

#define PP_WORD      ((ptrdiff_t) sizeof(uint64))
#define PP_EACH_BYTE UINT64CONST(0x0101010101010101)
#define PP_HIGH_BITS UINT64CONST(0x8080808080808080)

/* Those at `p`, which need not be aligned, in the machine's order. */
static inline uint64
pp_word_at(const char *p)
{
	uint64 word;

	memcpy(&word, p, sizeof(word));
	return word;
}

#endif /* PP_WORD_H */
