/*
 * redis.c
 *		One connection to Redis, driven by the process latch.
 *
 * hiredis is used non-blocking and never waits: every wait is pp_redis_wait(), on the process
 * latch and the socket, so that signals, barriers and the postmaster's death are served at once
 * even while Redis is a black hole.  No ereport() crosses a frame of hiredis; failures come back
 * as results, with the cause in pp_redis_error().
 *
 * A connection is opened by pp_redis_start(), which queues the log-in; the replies to it are
 * consumed here, and pp_redis_is_open() becomes true when it is done.  When the server turns out
 * to be the same process as before (run_id), the connection that we had then is killed by its
 * client ID: half-open, it could go on taking entries for our consumer.
 *
 * This module knows no settings and no pipelines.
 */
#include "redis_internal.h"
#include "process.h"
#include "redis.h"

#include <fcntl.h>
#include <netdb.h>
#include <sys/socket.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#define READ_AT_ONCE (256 * 1024) /* look for complete replies after so many bytes */
#define HANDSHAKE_LIMIT (256 * 1024)
#define LOGIN_STEPS 6

/* Which reply of the log-in comes next. */
typedef enum LoginStep
{
	LOGIN_AUTH,
	LOGIN_SELECT,
	LOGIN_SETNAME,
	LOGIN_CLIENT_ID,
	LOGIN_INFO,
	LOGIN_KILL
} LoginStep;

struct PpRedis
{
	MemoryContext cxt;
	MemoryContext login_cxt; /* for replies to the log-in */
	redisContext *rc;		 /* NULL: closed */
	bool		fd_accounted;
	bool		connecting;	 /* the socket is not connected yet */
	LoginStep	login[LOGIN_STEPS];
	int			login_next;
	int			login_count; /* steps whose reply is outstanding */
	int			outstanding; /* replies owed to the caller */
	PpReplyTarget target;
	PpRedisUrl	url;
	PpRedisError error;
	char		name[PP_CONSUMER_LEN];
	int64		client_id;
	int64		old_client_id; /* of the connection before, if it may still be half-open */
	char		run_id[64];
	char		version[32];
	char		role[16];
};

/* A closed connection with this client name; it lives as long as `parent`. */
PpRedis *
pp_redis_create(MemoryContext parent, const char *client_name)
{
	MemoryContext cxt = AllocSetContextCreate(parent, "postpipe redis", ALLOCSET_SMALL_SIZES);
	PpRedis    *conn = MemoryContextAllocZero(cxt, sizeof(PpRedis));

	conn->cxt = cxt;
	conn->login_cxt = AllocSetContextCreate(cxt, "postpipe redis login", ALLOCSET_SMALL_SIZES);
	strlcpy(conn->name, client_name, sizeof(conn->name));
	return conn;
}

/* Closes the connection; replies that were outstanding will never come. */
void
pp_redis_close(PpRedis *conn)
{
	if (conn->rc != NULL)
	{
		if (conn->client_id != 0)
			conn->old_client_id = conn->client_id;
		redisFree(conn->rc);
		conn->rc = NULL;
	}
	if (conn->fd_accounted)
		ReleaseExternalFD();
	conn->fd_accounted = false;
	conn->outstanding = 0;
	conn->login_count = 0;
	conn->client_id = 0;
}

/* Closes the connection for this reason. Always returns PP_REDIS_FAILED. */
PpRedisResult
pp_redis_fail(PpRedis *conn, PpRedisClass class, const char *code, const char *fmt,...)
{
	va_list		args;
	char		text[PP_REASON_LEN];

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	pp_redis_error_set(&conn->error, class, code, "%s", text);
	pp_redis_close(conn);
	return PP_REDIS_FAILED;
}

static PpRedisResult
fail_connect(PpRedis *conn, const char *why)
{
	return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_connect",
						 "could not connect to %s: %s", conn->url.display, why);
}

static PpRedisResult
fail_hiredis(PpRedis *conn)
{
	if (conn->target.over_limit)
		return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_reply_too_large",
							 "a reply of Redis is larger than %zu bytes", conn->target.limit);
	if (conn->rc->err == REDIS_ERR_EOF)
		return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_closed",
							 "Redis closed the connection");
	if (conn->rc->err == REDIS_ERR_PROTOCOL)
		return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_protocol",
							 "a reply of Redis could not be understood: %s", conn->rc->errstr);
	return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_io", "connection to Redis failed: %s",
						 conn->rc->err == REDIS_ERR_IO ? strerror(errno) : conn->rc->errstr);
}

/*
 * Resolves the host to a numeric address.  getaddrinfo() cannot be interrupted; the resolver's
 * own timeout, lowered once per process, bounds it (resolv.conf(5), RES_OPTIONS).
 */
static bool
resolve(PpRedis *conn, char *address, size_t size)
{
	static bool resolver_bounded = false;
	struct addrinfo hints;
	struct addrinfo *list;
	int			rc;

	if (!resolver_bounded)
	{
		setenv("RES_OPTIONS", "timeout:1 attempts:1", 0);
		resolver_bounded = true;
	}
	memset(&hints, 0, sizeof(hints));
	hints.ai_socktype = SOCK_STREAM;
	hints.ai_flags = AI_ADDRCONFIG;
	rc = getaddrinfo(conn->url.host, NULL, &hints, &list);
	if (rc == 0)
	{
		/*
		 * IPv4 first where there is a choice: Redis listens on 127.0.0.1 and often not on ::1, and
		 * one attempt is made per back-off.
		 */
		struct addrinfo *best = list;

		for (struct addrinfo *ai = list; ai != NULL; ai = ai->ai_next)
			if (ai->ai_family == AF_INET)
			{
				best = ai;
				break;
			}
		rc = getnameinfo(best->ai_addr, best->ai_addrlen, address, (socklen_t) size, NULL, 0,
						 NI_NUMERICHOST);
		freeaddrinfo(list);
	}
	if (rc != 0)
		(void) fail_connect(conn, gai_strerror(rc));
	return rc == 0;
}

static void
queue_login(PpRedis *conn)
{
	int			n = 0;

	if (conn->url.password[0] != '\0')
	{
		if (conn->url.user[0] != '\0')
			redisAppendCommand(conn->rc, "AUTH %s %s", conn->url.user, conn->url.password);
		else
			redisAppendCommand(conn->rc, "AUTH %s", conn->url.password);
		conn->login[n++] = LOGIN_AUTH;
	}
	if (conn->url.db != 0)
	{
		redisAppendCommand(conn->rc, "SELECT %d", conn->url.db);
		conn->login[n++] = LOGIN_SELECT;
	}
	redisAppendCommand(conn->rc, "CLIENT SETNAME %s", conn->name);
	conn->login[n++] = LOGIN_SETNAME;
	redisAppendCommand(conn->rc, "CLIENT ID");
	conn->login[n++] = LOGIN_CLIENT_ID;
	redisAppendCommand(conn->rc, "INFO");
	conn->login[n++] = LOGIN_INFO;
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
	char		address[NI_MAXHOST];

	pp_redis_close(conn);
	if (strcmp(conn->url.display, url->display) != 0)
		conn->old_client_id = 0;	/* another server: the number means nothing there */
	conn->url = *url;
	memset(&conn->error, 0, sizeof(conn->error));
	if (!url->is_unix && !resolve(conn, address, sizeof(address)))
		return false;

	if (!AcquireExternalFD())
	{
		(void) fail_connect(conn, "too many open files");
		return false;
	}
	conn->fd_accounted = true;
	conn->rc = url->is_unix ? redisConnectUnixNonBlock(url->host) :
		redisConnectNonBlock(address, url->port);
	if (conn->rc == NULL || conn->rc->err)
	{
		(void) fail_connect(conn, conn->rc ? conn->rc->errstr : "out of memory");
		return false;
	}
	(void) fcntl(conn->rc->fd, F_SETFD, FD_CLOEXEC);
	if (!url->is_unix)
		(void) redisEnableKeepAlive(conn->rc);
	conn->rc->reader->fn = pp_reply_functions();
	conn->rc->reader->privdata = &conn->target;
	MemoryContextReset(conn->login_cxt);
	pp_reply_target(&conn->target, conn->login_cxt, HANDSHAKE_LIMIT);
	conn->connecting = true;
	queue_login(conn);
	return true;
}

/* The value of "name:value" in INFO's text. */
static void
copy_info(const PpReply *info, const char *name, char *dst, size_t size)
{
	const char *p = info->str;
	size_t		len = strlen(name);

	while (p != NULL && *p != '\0')
	{
		if (strncmp(p, name, len) == 0 && p[len] == ':')
		{
			size_t		n = strcspn(p + len + 1, "\r\n");

			strlcpy(dst, p + len + 1, Min(n + 1, size));
			return;
		}
		p = strchr(p, '\n');
		p = p ? p + 1 : NULL;
	}
	dst[0] = '\0';
}

static void
learn_server(PpRedis *conn, const PpReply *info)
{
	char		run_id[sizeof(conn->run_id)];

	copy_info(info, "run_id", run_id, sizeof(run_id));
	copy_info(info, "redis_version", conn->version, sizeof(conn->version));
	copy_info(info, "role", conn->role, sizeof(conn->role));
	if (conn->old_client_id != 0 && run_id[0] != '\0' && strcmp(run_id, conn->run_id) == 0)
	{
		redisAppendCommand(conn->rc, "CLIENT KILL ID %lld", (long long) conn->old_client_id);
		conn->login[conn->login_next + conn->login_count++] = LOGIN_KILL;
	}
	conn->old_client_id = 0;
	strlcpy(conn->run_id, run_id, sizeof(conn->run_id));
}

/* One reply of the log-in has come. */
static PpRedisResult
login_step(PpRedis *conn, const PpReply *reply)
{
	LoginStep	step = conn->login[conn->login_next++];

	conn->login_count--;
	if (reply->type == PP_REPLY_ERROR)
	{
		PpRedisError error;

		/*
		 * The name, the ID and INFO are good to have; a user whose ACL refuses them (NOPERM), or a
		 * server that has not got them, can still serve streams.
		 */
		pp_redis_error_reply(&error, reply->str, reply->len);
		if (step >= LOGIN_SETNAME && (strcmp(error.code, "redis_noperm") == 0 ||
									  strcmp(error.code, "redis_command") == 0 ||
									  strcmp(error.code, "redis_error") == 0))
			return PP_REDIS_NOTHING;
		pp_redis_close(conn);
		conn->error = error;
		return PP_REDIS_FAILED;
	}
	if (step == LOGIN_CLIENT_ID)
		(void) pp_reply_integer(reply, &conn->client_id);
	else if (step == LOGIN_INFO && reply->type == PP_REPLY_STRING)
		learn_server(conn, reply);
	return PP_REDIS_NOTHING;
}

/* Connected, logged in, ready for commands. */
bool
pp_redis_is_open(const PpRedis *conn)
{
	return conn->rc != NULL && !conn->connecting && conn->login_count == 0;
}

/* How many replies the caller has still to receive. */
int
pp_redis_outstanding(const PpRedis *conn)
{
	return conn->outstanding;
}

/* Further replies are built in `cxt`, of at most `limit` bytes in all. */
void
pp_redis_reply_target(PpRedis *conn, MemoryContext cxt, size_t limit)
{
	pp_reply_target(&conn->target, cxt, limit);
}

/* Queues a command, in hiredis's format (%s, %b with a length, %d, %lld). One reply will come. */
void
pp_redis_send(PpRedis *conn, const char *format,...)
{
	va_list		args;

	if (conn->rc == NULL)
		return;
	va_start(args, format);
	(void) redisvAppendCommand(conn->rc, format, args);
	va_end(args);
	conn->outstanding++;
}

/* Queues a command given as its words. */
void
pp_redis_send_strings(PpRedis *conn, int n, const PpString *strings)
{
	const char **argv;
	size_t	   *lengths;

	if (conn->rc == NULL)
		return;
	argv = palloc(n * sizeof(*argv));
	lengths = palloc(n * sizeof(*lengths));
	for (int i = 0; i < n; i++)
	{
		argv[i] = strings[i].data;
		lengths[i] = strings[i].len;
	}
	(void) redisAppendCommandArgv(conn->rc, n, argv, lengths);
	conn->outstanding++;
	pfree(argv);
	pfree(lengths);
}

/* The end of a non-blocking connect(): the socket has become writable. */
static bool
finish_connect(PpRedis *conn)
{
	int			err = 0;
	socklen_t	len = sizeof(err);
	struct sockaddr_storage peer;
	socklen_t	peer_len = sizeof(peer);

	if (getsockopt(conn->rc->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
		err = errno;
	if (err != 0)
	{
		(void) fail_connect(conn, strerror(err));
		return false;
	}
	if (getpeername(conn->rc->fd, (struct sockaddr *) &peer, &peer_len) == 0)
		conn->connecting = false;
	return true;
}

/* Writes what is queued, as far as the socket takes it. Returns false when the connection failed. */
bool
pp_redis_flush(PpRedis *conn)
{
	int			done = 0;

	if (conn->rc == NULL)
		return false;
	if (conn->connecting && (!finish_connect(conn) || conn->connecting))
		return conn->rc != NULL;
	while (!done && conn->rc->obuf != NULL)
	{
		size_t		before = sdslen(conn->rc->obuf);

		if (redisBufferWrite(conn->rc, &done) != REDIS_OK)
		{
			(void) fail_hiredis(conn);
			return false;
		}
		if (!done && sdslen(conn->rc->obuf) == before)
			break;				/* the socket is full */
	}
	return true;
}

/* Reads what has arrived. Sets *more when there was anything. */
static bool
read_some(PpRedis *conn, bool *more)
{
	size_t		total = 0;

	while (total < READ_AT_ONCE)
	{
		size_t		before = conn->rc->reader->len;

		errno = 0;
		if (redisBufferRead(conn->rc) != REDIS_OK)
		{
			if (total == 0)
				return false;
			/* What came before the end, perhaps the reason for it, is read first. */
			conn->rc->err = 0;
			break;
		}
		if (conn->rc->reader->len == before)
			break;
		total += conn->rc->reader->len - before;
	}
	*more = total > 0;
	if (conn->rc->reader->len > conn->target.limit + READ_AT_ONCE)
	{
		conn->target.over_limit = true;
		return false;
	}
	return true;
}

/*
 * pp_redis_poll
 *		Writes and reads without waiting.  Returns PP_REDIS_REPLY with the next reply, built in the
 *		reply target; error replies of commands are replies, too.
 */
PpRedisResult
pp_redis_poll(PpRedis *conn, PpReply **reply)
{
	bool		more = true;

	if (conn->rc == NULL)
		return PP_REDIS_FAILED;
	if (!pp_redis_flush(conn))
		return PP_REDIS_FAILED;
	if (conn->connecting)
		return PP_REDIS_NOTHING;
	for (;;)
	{
		void	   *object = NULL;

		if (redisReaderGetReply(conn->rc->reader, &object) != REDIS_OK)
		{
			conn->rc->err = conn->rc->reader->err;
			strlcpy(conn->rc->errstr, conn->rc->reader->errstr, sizeof(conn->rc->errstr));
			return fail_hiredis(conn);
		}
		if (object != NULL && conn->login_count > 0)
		{
			if (login_step(conn, object) == PP_REDIS_FAILED || !pp_redis_flush(conn))
				return PP_REDIS_FAILED;
		}
		else if (object != NULL && conn->outstanding == 0)
			return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_protocol",
								 "Redis sent a reply that nothing was asked for");
		else if (object != NULL)
		{
			conn->outstanding--;
			*reply = object;
			return PP_REDIS_REPLY;
		}
		else if (!more)
			return PP_REDIS_NOTHING;
		else if (!read_some(conn, &more))
			return fail_hiredis(conn);
	}
}

/*
 * pp_redis_wait
 *		Waits until the socket is ready, the latch is set, or time is up (ms; -1: no limit).  Serves
 *		interrupts; resets the latch, so that the caller has to look at what it may mean.  Works on
 *		a closed connection and on none: then only the latch counts.  Returns whether it was set.
 */
bool
pp_redis_wait(PpRedis *conn, long timeout_ms, PpWaitEvent event)
{
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;
	int			rc;

	if (timeout_ms >= 0)
		events |= WL_TIMEOUT;
	if (conn != NULL && conn->rc != NULL)
	{
		events |= conn->connecting ? WL_SOCKET_CONNECTED : WL_SOCKET_READABLE;
		if (!conn->connecting && conn->rc->obuf != NULL && sdslen(conn->rc->obuf) > 0)
			events |= WL_SOCKET_WRITEABLE;
		rc = WaitLatchOrSocket(MyLatch, events, conn->rc->fd, timeout_ms, pp_wait_event(event));
	}
	else
		rc = WaitLatch(MyLatch, events, timeout_ms, pp_wait_event(event));
	if (rc & WL_LATCH_SET)
		ResetLatch(MyLatch);
	pp_process_interrupts();
	return (rc & WL_LATCH_SET) != 0;
}

/*
 * pp_redis_receive
 *		Waits for the next reply, at most timeout_ms.  For callers that have nothing else to look
 *		after meanwhile (SQL functions); interrupts are served.
 */
PpRedisResult
pp_redis_receive(PpRedis *conn, PpReply **reply, long timeout_ms, PpWaitEvent event)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout_ms);

	for (;;)
	{
		PpRedisResult result = pp_redis_poll(conn, reply);
		long		left;

		if (result != PP_REDIS_NOTHING)
			return result;
		if (reply == NULL && pp_redis_is_open(conn))
			return PP_REDIS_NOTHING;
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end);
		if (left <= 0)
			return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_timeout",
								 "Redis did not answer within %ld ms", timeout_ms);
		pp_redis_wait(conn, left, event);
	}
}

const PpRedisError *
pp_redis_error(const PpRedis *conn)
{
	return &conn->error;
}

/* The URL without the password. */
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

const char *
pp_redis_role(const PpRedis *conn)
{
	return conn->role;
}

int64
pp_redis_client_id(const PpRedis *conn)
{
	return conn->client_id;
}

/* The version of hiredis that this was built with. */
const char *
pp_redis_library(void)
{
	return CppAsString2(HIREDIS_MAJOR) "." CppAsString2(HIREDIS_MINOR) "." CppAsString2(HIREDIS_PATCH);
}
