/*
 * redis_reply.c
 *		hiredis's reply callbacks: build replies straight into our memory.
 *
 * hiredis would malloc some 35 objects per entry, copy nothing for us, and leak them all when an
 * ereport() jumps past it.  These callbacks take memory from the context of the batch, in large
 * chunks, and refuse what is too large; refusing (returning NULL) makes hiredis give up on the
 * connection.  They never throw: no ereport() may cross a frame of hiredis.
 */
#include "redis_internal.h"

#include "utils/memutils.h"

#define CHUNK_SIZE (8 * 1024) /* the largest that a memory context takes from its blocks */
#define SKIM_ABOVE 1024       /* bytes */

/* Replies are built in `cxt` from now on, of at most `limit` bytes until the next call. */
void
pp_reply_target(PpReplyTarget *target, MemoryContext cxt, size_t limit)
{
	target->cxt = cxt;
	target->chunk = NULL;
	target->chunk_left = 0;
	target->bytes = 0;
	target->limit = limit;
	target->over_limit = false;
	target->skim = false;
	target->skimmed = 0;
}

static void *
take(PpReplyTarget *target, size_t size)
{
	void *result;

	size = MAXALIGN(size);
	if (size > target->limit - Min(target->bytes, target->limit))
	{
		target->over_limit = true;
		return NULL;
	}
	if (size > target->chunk_left)
	{
		size_t want = Max(size, CHUNK_SIZE);
		char *chunk =
			MemoryContextAllocExtended(target->cxt, want, MCXT_ALLOC_NO_OOM | MCXT_ALLOC_HUGE);

		if (chunk == NULL)
		{
			target->over_limit = true;
			return NULL;
		}
		/* A large object gets its own chunk; the one in use may still have room for small ones. */
		if (want - size < target->chunk_left)
		{
			target->bytes += size;
			return chunk;
		}
		target->chunk = chunk;
		target->chunk_left = want;
	}
	result = target->chunk;
	target->chunk += size;
	target->chunk_left -= size;
	target->bytes += size;
	return result;
}

/* The place for the object of this task: in its parent's array, or a new one at the root. */
static PpReply *
place(const redisReadTask *task)
{
	if (task->parent != NULL)
		return &((PpReply *) task->parent->obj)->items[task->idx];
	return take((PpReplyTarget *) task->privdata, sizeof(PpReply));
}

static void *
create_string(const redisReadTask *task, char *str, size_t len)
{
	PpReplyTarget *target = task->privdata;
	PpReply *reply = place(task);
	char *copy;

	if (target->skim && len > SKIM_ABOVE)
	{
		target->skimmed += len;
		len = 0;
	}
	copy = reply ? take(target, VARHDRSZ + len + 1) : NULL;
	if (copy == NULL)
		return NULL;
	/* A value is a text where it is then, and need not be copied into one. */
	SET_VARSIZE(copy, VARHDRSZ + len);
	copy += VARHDRSZ;
	memcpy(copy, str, len);
	copy[len] = '\0';
	reply->type = task->type == REDIS_REPLY_ERROR    ? PP_REPLY_ERROR
				  : task->type == REDIS_REPLY_STATUS ? PP_REPLY_STATUS
													 : PP_REPLY_STRING;
	reply->str = copy;
	reply->len = len;
	return reply;
}

#if HIREDIS_MAJOR < 1
static void *
create_array(const redisReadTask *task, int n)
#else
static void *
create_array(const redisReadTask *task, size_t n)
#endif
{
	PpReply *reply = place(task);

	if (reply == NULL || (int64) n < 0 || (int64) n > PP_MAX_ITEMS)
	{
		((PpReplyTarget *) task->privdata)->over_limit = true;
		return NULL;
	}
	reply->type = PP_REPLY_ARRAY;
	reply->len = n;
	reply->items = NULL;
	if (n > 0)
	{
		reply->items = take((PpReplyTarget *) task->privdata, n * sizeof(PpReply));
		if (reply->items == NULL)
			return NULL;
		memset(reply->items, 0, n * sizeof(PpReply));
	}
	return reply;
}

static void *
create_integer(const redisReadTask *task, long long value)
{
	PpReply *reply = place(task);

	if (reply == NULL)
		return NULL;
	memset(reply, 0, sizeof(*reply));
	reply->type = PP_REPLY_INTEGER;
	reply->integer = value;
	return reply;
}

static void *
create_nil(const redisReadTask *task)
{
	PpReply *reply = place(task);

	if (reply != NULL)
		memset(reply, 0, sizeof(*reply));
	return reply;
}

#if HIREDIS_MAJOR >= 1
/* RESP3: we never say HELLO 3, so nobody may send it. Without these hiredis would make up replies. */
static void *
refuse_double(const redisReadTask *task, double value, char *str, size_t len)
{
	return NULL;
}

static void *
refuse_bool(const redisReadTask *task, int value)
{
	return NULL;
}
#endif

/* The memory goes with its context. */
static void
free_object(void *reply)
{
}

/* The table for redisReader.fn; its privdata has to be a PpReplyTarget. */
redisReplyObjectFunctions *
pp_reply_functions(void)
{
	static redisReplyObjectFunctions functions = {
		.createString = create_string,
		.createArray = create_array,
		.createInteger = create_integer,
		.createNil = create_nil,
#if HIREDIS_MAJOR >= 1
		.createDouble = refuse_double,
		.createBool = refuse_bool,
#endif
		.freeObject = free_object,
	};

	return &functions;
}

/* Is it of this type and, for arrays and strings, at least so long? */
bool
pp_reply_is(const PpReply *reply, PpReplyType type, size_t min_len)
{
	return reply != NULL && reply->type == type && reply->len >= min_len;
}

bool
pp_reply_integer(const PpReply *reply, int64 *value)
{
	if (reply == NULL || reply->type != PP_REPLY_INTEGER)
		return false;
	*value = reply->integer;
	return true;
}

/* A number that is never negative; -1: there is none. */
int64
pp_reply_number(const PpReply *reply)
{
	int64 n;

	return pp_reply_integer(reply, &n) ? n : -1;
}

/* The value of `key` in an array of names and values in turn (XINFO's form); NULL when absent. */
const PpReply *
pp_reply_lookup(const PpReply *map, const char *key)
{
	if (map == NULL || map->type != PP_REPLY_ARRAY)
		return NULL;
	for (size_t i = 0; i + 1 < map->len; i += 2)
	{
		const PpReply *name = &map->items[i];

		if (name->type == PP_REPLY_STRING && strcmp(name->str, key) == 0)
			return &map->items[i + 1];
	}
	return NULL;
}
