/*
 * redis_reply.h
 *		A reply of Redis, built in a memory context of ours.
 */
#ifndef PP_REDIS_REPLY_H
#define PP_REDIS_REPLY_H

#include "postpipe.h"

typedef enum PpReplyType
{
	PP_REPLY_NIL = 0,
	PP_REPLY_STRING,
	PP_REPLY_STATUS,
	PP_REPLY_ERROR,
	PP_REPLY_INTEGER,
	PP_REPLY_ARRAY
} PpReplyType;

typedef struct PpReply
{
	PpReplyType type;
	size_t len; /* of str, or number of items */
	union
	{
		char *str; /* STRING, STATUS, ERROR: len bytes and a zero, behind the header of a text */
		int64 integer;         /* INTEGER */
		struct PpReply *items; /* ARRAY */
	};
} PpReply;

/* Where replies are built. Reset `cxt` and forget `chunk` together: pp_reply_target(). */
typedef struct PpReplyTarget
{
	MemoryContext cxt;
	char *chunk;
	size_t chunk_left;
	size_t bytes; /* taken from cxt since it was set */
	size_t limit; /* refuse to take more */
	bool over_limit;
	bool skim;      /* of strings that are longer than any name or number, nothing is kept … */
	size_t skimmed; /* … but how long they were in all */
} PpReplyTarget;

extern void pp_reply_target(PpReplyTarget *target, MemoryContext cxt, size_t limit);
extern bool pp_reply_is(const PpReply *reply, PpReplyType type, size_t min_len);
extern bool pp_reply_integer(const PpReply *reply, int64 *value);
extern int64 pp_reply_number(const PpReply *reply);
extern const PpReply *pp_reply_lookup(const PpReply *map, const char *key);

#endif /* PP_REDIS_REPLY_H */
