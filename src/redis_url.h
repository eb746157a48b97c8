/*
 * redis_url.h
 *		Where a Redis server is and how to log in, parsed from a URL.
 */
#ifndef PP_REDIS_URL_H
#define PP_REDIS_URL_H

#include "postpipe.h"

/* One flat chunk without pointers: the setting's check hook hands it to the assign hook. */
typedef struct PpRedisUrl
{
	bool is_unix;
	char host[256]; /* or the path of the socket */
	int port;
	int db;
	char user[128];     /* empty: AUTH with the password alone */
	char password[512]; /* empty, and no user: no AUTH */
	char display[512];  /* the URL with the password replaced, for people */
} PpRedisUrl;

extern bool pp_redis_url_parse(const char *url, PpRedisUrl *out, char *why, size_t why_len);

#endif /* PP_REDIS_URL_H */
