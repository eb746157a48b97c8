/*
 * redis_server.h
 *		A Redis server of a pipeline's own: a foreign server of the wrapper postpipe_redis.
 */
#ifndef PP_REDIS_SERVER_H
#define PP_REDIS_SERVER_H

#include "redis_url.h"

extern char *pp_redis_server_find(const char *name, Oid owner, PpRedisUrl *url);

#endif /* PP_REDIS_SERVER_H */
