/*
 * redis_error.h
 *		What a failure of Redis means for us.
 */
#ifndef PP_REDIS_ERROR_H
#define PP_REDIS_ERROR_H

#include "postpipe.h"

typedef enum PpRedisClass
{
	PP_REDIS_CLASS_NONE = 0,
	PP_REDIS_CLASS_MOMENT,   /* will pass: try again */
	PP_REDIS_CLASS_SETTING,  /* somebody has to change something; tried again all the same */
	PP_REDIS_CLASS_STRUCTURE /* the key or the group is gone or changed: look, and make it again */
} PpRedisClass;

typedef struct PpRedisError
{
	PpRedisClass class;
	const char *code; /* stable reason code, a constant */
	char message[PP_REASON_LEN];
} PpRedisError;

extern void pp_redis_copy_text(char *dst, size_t size, const char *src, size_t len);
extern void pp_redis_error_reply(PpRedisError *error, const char *text, size_t len);
extern void pp_redis_error_set(PpRedisError *error, PpRedisClass class, const char *code,
							   const char *fmt, ...) pg_attribute_printf(4, 5);
extern int pp_redis_error_sqlstate(const PpRedisError *error);
extern const char *pp_redis_error_hint(const PpRedisError *error);

#endif /* PP_REDIS_ERROR_H */
