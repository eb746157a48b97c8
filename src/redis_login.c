/*
 * redis_login.c
 *		Open a connection to Redis: connect, log in, know the server.
 *
 * pp_redis_start() begins to connect and queues the log-in; the replies to it are consumed by
 * pp_redis_login_step(), and pp_redis_is_open() becomes true when it is done.  When the server turns
 * out to be the same process as before (run_id), the connection that we had then is killed by its
 * client ID: half-open, it could go on taking entries for our consumer.
 */
#include "redis_internal.h"

#include <fcntl.h>

#include "common/hashfn.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#define KEPT_BUFFER     (4 * 1024 * 1024) /* what the reader keeps between two replies */
#define HANDSHAKE_LIMIT (256 * 1024)

static void
queue_login(PpRedis *conn)
{
	int n = 0;

	if (conn->url.user[0] != '\0') /* one with nopass takes any password */
	{
		redisAppendCommand(conn->rc, "AUTH %s %s", conn->url.user, conn->url.password);
		conn->login[n++] = PP_LOGIN_AUTH;
	}
	else if (conn->url.password[0] != '\0')
	{
		redisAppendCommand(conn->rc, "AUTH %s", conn->url.password);
		conn->login[n++] = PP_LOGIN_AUTH;
	}
	if (conn->url.db != 0)
	{
		redisAppendCommand(conn->rc, "SELECT %d", conn->url.db);
		conn->login[n++] = PP_LOGIN_SELECT;
	}
	redisAppendCommand(conn->rc, "CLIENT SETNAME %s", conn->name);
	conn->login[n++] = PP_LOGIN_SETNAME;
	redisAppendCommand(conn->rc, "CLIENT ID");
	conn->login[n++] = PP_LOGIN_CLIENT_ID;
	redisAppendCommand(conn->rc, "INFO");
	conn->login[n++] = PP_LOGIN_INFO;
	conn->login_next = 0;
	conn->login_count = n;
}

/*
 * pp_redis_start
 *		Begins to connect and to log in.  Returns false when that failed at once; else the caller
 *		goes on with pp_redis_wait() and pp_redis_poll() until pp_redis_is_open().
 */
bool
pp_redis_start(PpRedis *conn, const PpRedisUrl *url)
{
	pp_redis_close(conn);
	if (strcmp(conn->url.display, url->display) != 0)
		conn->old_client_id = 0; /* another server: the number means nothing there */
	conn->url = *url;
	memset(&conn->error, 0, sizeof(conn->error));
	conn->error.code = "";
	if (!url->is_unix && !pp_redis_find_address(conn))
		return false;

	if (!AcquireExternalFD())
	{
		(void) pp_redis_fail_connect(conn, "too many open files");
		return false;
	}
	conn->fd_accounted = true;
	conn->rc = url->is_unix ? redisConnectUnixNonBlock(url->host)
							: redisConnectNonBlock(conn->address, url->port);
	if (conn->rc == NULL || conn->rc->err)
	{
		(void) pp_redis_fail_connect(conn, conn->rc ? conn->rc->errstr : "out of memory");
		return false;
	}
	(void) fcntl(conn->rc->fd, F_SETFD, FD_CLOEXEC);
	if (!url->is_unix)
		(void) redisEnableKeepAlive(conn->rc);
	conn->rc->reader->fn = pp_reply_functions();
	conn->rc->reader->privdata = &conn->target;
	conn->rc->reader->maxbuf = KEPT_BUFFER;
	MemoryContextReset(conn->login_cxt);
	pp_reply_target(&conn->target, conn->login_cxt, HANDSHAKE_LIMIT);
	conn->connecting = true;
	queue_login(conn);
	return true;
}

/* The value of "name:value" in INFO's text; empty: it does not say. */
void
pp_redis_info(const PpReply *info, const char *name, char *dst, size_t size)
{
	const char *p = info->str;
	size_t len = strlen(name);

	while (p != NULL && *p != '\0')
	{
		if (strncmp(p, name, len) == 0 && p[len] == ':')
		{
			size_t n = strcspn(p + len + 1, "\r\n");

			pp_redis_copy_text(dst, size, p + len + 1, n);
			return;
		}
		p = strchr(p, '\n');
		p = p ? p + 1 : NULL;
	}
	dst[0] = '\0';
}

/* Only keys with a time to live are evicted by the other policies: a stream has none. */
static void
learn_eviction(PpRedis *conn, const PpReply *info)
{
	char limit[32];

	pp_redis_info(info, "maxmemory", limit, sizeof(limit));
	pp_redis_info(info, "maxmemory_policy", conn->eviction, sizeof(conn->eviction));
	if (strcmp(limit, "0") == 0 || strncmp(conn->eviction, "allkeys-", strlen("allkeys-")) != 0)
		conn->eviction[0] = '\0';
}

static void
learn_server(PpRedis *conn, const PpReply *info)
{
	char run_id[sizeof(conn->run_id)];

	pp_redis_info(info, "run_id", run_id, sizeof(run_id));
	pp_redis_info(info, "redis_version", conn->version, sizeof(conn->version));
	pp_redis_info(info, "role", conn->role, sizeof(conn->role));
	learn_eviction(conn, info);
	if (conn->old_client_id != 0 && run_id[0] != '\0' && strcmp(run_id, conn->run_id) == 0)
	{
		redisAppendCommand(conn->rc, "CLIENT KILL ID %lld", (long long) conn->old_client_id);
		conn->login[conn->login_next + conn->login_count++] = PP_LOGIN_KILL;
	}
	conn->old_client_id = 0;
	strlcpy(conn->run_id, run_id, sizeof(conn->run_id));
}

/* One reply of the log-in has come. */
PpRedisResult
pp_redis_login_step(PpRedis *conn, const PpReply *reply)
{
	PpLoginStep step = conn->login[conn->login_next++];

	conn->login_count--;
	if (reply->type == PP_REPLY_ERROR)
	{
		PpRedisError error;

		/*
		 * The name, the ID and INFO are good to have; a user whose ACL refuses them (NOPERM), or a
		 * server that has not got them, can still serve streams.
		 */
		pp_redis_error_reply(&error, reply->str, reply->len);
		if (step >= PP_LOGIN_SETNAME &&
			(strcmp(error.code, "redis_noperm") == 0 || strcmp(error.code, "redis_command") == 0 ||
			 strcmp(error.code, "redis_error") == 0))
			return PP_REDIS_NOTHING;
		pp_redis_close(conn);
		conn->error = error;
		return PP_REDIS_FAILED;
	}
	if (step == PP_LOGIN_CLIENT_ID)
		(void) pp_reply_integer(reply, &conn->client_id);
	else if (step == PP_LOGIN_INFO && reply->type == PP_REPLY_STRING)
		learn_server(conn, reply);
	return PP_REDIS_NOTHING;
}

/* Its URL, for people. */
const char *
pp_redis_display(const PpRedis *conn)
{
	return conn->url.display;
}

/* The server's version and role, as INFO tells them; empty when not known. */
const char *
pp_redis_version(const PpRedis *conn)
{
	return conn->version;
}

/* A number for this life of the server, which began when it was started; 0: it does not tell. */
uint64
pp_redis_run(const PpRedis *conn)
{
	return conn->run_id[0] == '\0' ? 0
								   : hash_bytes_extended((const unsigned char *) conn->run_id,
														 (int) strlen(conn->run_id), 1);
}

const char *
pp_redis_role(const PpRedis *conn)
{
	return conn->role;
}

/* The policy by which the server may evict a stream, as "allkeys-lru"; empty: it may not. */
const char *
pp_redis_eviction(const PpRedis *conn)
{
	return conn->eviction;
}

int64
pp_redis_client_id(const PpRedis *conn)
{
	return conn->client_id;
}
