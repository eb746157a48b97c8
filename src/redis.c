/*
 * redis.c
 *		One connection to Redis, driven by the process latch.
 *
 * hiredis is used non-blocking and never waits: every wait is pp_redis_wait(), on the process
 * latch and the socket, so that signals, barriers and the postmaster's death are served at once
 * even while Redis is a black hole.  No ereport() crosses a frame of hiredis; failures come back
 * as results, with the cause in pp_redis_error().
 *
 * How a connection is opened is in redis_login.c, how it is waited for in redis_wait.c.  This module
 * knows no settings and no pipelines.
 */
#include "redis_internal.h"

#include <sys/socket.h>

#include "storage/fd.h"
#include "utils/memutils.h"

#define READ_AT_ONCE (256 * 1024)         /* look for complete replies after so many bytes */
#define TAKE_AT_ONCE (4 * 1024 * 1024)    /* between two looks at interrupts */
#define MAX_LINE     ((size_t) 64 * 1024) /* of what is no string; Redis's are far shorter */
#define SKIM_LIMIT   ((size_t) 1200 * 1024 * 1024) /* of what is skimmed over, at once */

static void
close_with_context(void *conn)
{
	pp_redis_close(conn);
}

/* A closed connection with this client name; it lives as long as `parent`. */
PpRedis *
pp_redis_create(MemoryContext parent, const char *client_name)
{
	MemoryContext cxt = AllocSetContextCreate(parent, "postpipe redis", ALLOCSET_SMALL_SIZES);
	PpRedis *conn = MemoryContextAllocZero(cxt, sizeof(PpRedis));

	conn->cxt = cxt;
	conn->login_cxt = AllocSetContextCreate(cxt, "postpipe redis login", ALLOCSET_SMALL_SIZES);
	strlcpy(conn->name, client_name, sizeof(conn->name));
	conn->error.code = "";
	/* Whatever ends the context, an error among others, closes the connection. */
	conn->callback.func = close_with_context;
	conn->callback.arg = conn;
	MemoryContextRegisterResetCallback(cxt, &conn->callback);
	return conn;
}

/* From now on it lives as long as this context. */
void
pp_redis_keep(PpRedis *conn, MemoryContext parent)
{
	MemoryContextSetParent(conn->cxt, parent);
}

/* Closes the connection; replies that were outstanding will never come. */
void
pp_redis_close(PpRedis *conn)
{
	if (conn->rc != NULL)
	{
		if (conn->client_id != 0)
			conn->old_client_id = conn->client_id;
		pp_redis_wait_forget();
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
pp_redis_fail(PpRedis *conn, PpRedisClass class, const char *code, const char *fmt, ...)
{
	va_list args;
	char text[PP_REASON_LEN];

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	pp_redis_error_set(&conn->error, class, code, "%s", text);
	pp_redis_close(conn);
	return PP_REDIS_FAILED;
}

PpRedisResult
pp_redis_fail_connect(PpRedis *conn, const char *why)
{
	return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_connect",
						 "could not connect to %s: %s", conn->url.display, why);
}

static PpRedisResult
fail_hiredis(PpRedis *conn)
{
	if (conn->target.over_limit)
		return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_reply_too_large",
							 "a reply of Redis is too large: more than %zu bytes, or %d items",
							 conn->target.limit, PP_MAX_ITEMS);
	if (conn->rc->err == REDIS_ERR_EOF)
		return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_closed",
							 "Redis closed the connection");
	if (conn->rc->err == REDIS_ERR_PROTOCOL)
		return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_protocol",
							 "a reply of Redis could not be understood: %s", conn->rc->errstr);
	return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_io", "connection to Redis failed: %s",
						 conn->rc->err == REDIS_ERR_IO ? strerror(errno) : conn->rc->errstr);
}

/* Connected, logged in, ready for commands. */
bool
pp_redis_is_open(const PpRedis *conn)
{
	return conn->rc != NULL && !conn->connecting && conn->login_count == 0;
}

static size_t
unparsed(const PpRedis *conn)
{
	return conn->rc->reader->len - conn->rc->reader->pos;
}

static PpRedisResult
fail_unasked(PpRedis *conn)
{
	return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_protocol",
						 "Redis sent a reply that nothing was asked for");
}

/* How many replies the caller has still to receive. */
int
pp_redis_outstanding(const PpRedis *conn)
{
	return conn->outstanding;
}

/* How many bytes have come in all: while they do, Redis is not silent. */
uint64
pp_redis_received(const PpRedis *conn)
{
	return conn->received;
}

/* Further replies are built in `cxt`, of at most `limit` bytes in all. */
void
pp_redis_reply_target(PpRedis *conn, MemoryContext cxt, size_t limit)
{
	pp_reply_target(&conn->target, cxt, limit);
}

/* May a command be queued?  Not when bytes wait that would be taken for its reply. */
static bool
can_send(PpRedis *conn)
{
	if (conn->rc != NULL && pp_redis_is_open(conn) && conn->outstanding == 0 && unparsed(conn) > 0)
		(void) fail_unasked(conn);
	return conn->rc != NULL;
}

/*
 * pp_redis_skim
 *		From the next reply on, keep (or not) nothing of long strings: XINFO STREAM shows two entries
 *		whole, of which the IDs are wanted.  However long they are, they are no reason to give up.
 */
void
pp_redis_skim(PpRedis *conn, bool skim)
{
	conn->target.skim = skim;
}

/* Bytes that were skimmed over since the reply target was set. */
size_t
pp_redis_skimmed(const PpRedis *conn)
{
	return conn->target.skimmed;
}

/* Queues a command, in hiredis's format (%s, %b with a length, %d, %lld). One reply will come. */
void
pp_redis_send(PpRedis *conn, const char *format, ...)
{
	va_list args;

	if (!can_send(conn))
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
	size_t *lengths;

	if (!can_send(conn))
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
	int err = 0;
	socklen_t len = sizeof(err);
	struct sockaddr_storage peer;
	socklen_t peer_len = sizeof(peer);

	if (getsockopt(conn->rc->fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
		err = errno;
	if (err != 0)
	{
		(void) pp_redis_fail_connect(conn, strerror(err));
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
	int done = 0;

	if (conn->rc == NULL)
		return false;
	if (conn->connecting && (!finish_connect(conn) || conn->connecting))
		return conn->rc != NULL;
	while (!done && conn->rc->obuf != NULL)
	{
		size_t before = sdslen(conn->rc->obuf);

		if (redisBufferWrite(conn->rc, &done) != REDIS_OK)
		{
			(void) fail_hiredis(conn);
			return false;
		}
		if (!done && sdslen(conn->rc->obuf) == before)
			break; /* the socket is full */
	}
	return true;
}

/* How much of a reply may wait to be read, and so how long a string may be. */
static size_t
max_unread(const PpRedis *conn)
{
	return conn->target.skim ? SKIM_LIMIT : conn->target.limit;
}

/* Reads what has arrived, READ_AT_ONCE at most.  False: the connection has failed. */
static bool
read_some(PpRedis *conn)
{
	size_t total = 0;

	while (total < READ_AT_ONCE)
	{
		size_t before = conn->rc->reader->len;

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
	conn->received += total;
	if (conn->rc->reader->len > max_unread(conn) + READ_AT_ONCE)
	{
		conn->target.over_limit = true;
		return false;
	}
	return true;
}

/*
 * Is what the reader could not read yet a line without an end?  It would be searched for one from its
 * beginning each time.
 */
static bool
line_is_endless(const PpRedis *conn)
{
	return unparsed(conn) >= MAX_LINE &&
		   memmem(conn->rc->reader->buf + conn->rc->reader->pos, MAX_LINE, "\r\n", 2) == NULL;
}

/*
 * Is it the beginning of a string that will be refused?  What has its line and is not read yet, is
 * a string: the line is its length, behind the type byte, and the rest has not come.
 */
static bool
string_is_too_large(PpRedis *conn)
{
	const char *line = conn->rc->reader->buf + conn->rc->reader->pos;

	return unparsed(conn) > 0 && memmem(line, Min(unparsed(conn), 32), "\r\n", 2) != NULL &&
		   strtoll(line, NULL, 10) > (long long) max_unread(conn);
}

/*
 * pp_redis_take_in
 *		Takes what has arrived off the socket, without looking at it, so that Redis can go on writing a
 *		long reply: a socket holds less than that.  Never fails: what is wrong, the next poll finds.
 */
void
pp_redis_take_in(PpRedis *conn)
{
	size_t total = 0;

	if (conn->rc == NULL || conn->connecting)
		return;
	while (total < TAKE_AT_ONCE && !line_is_endless(conn))
	{
		size_t before = conn->rc->reader->len;

		if (before > conn->target.limit)
			break;
		if (redisBufferRead(conn->rc) != REDIS_OK)
			conn->rc->err = 0; /* what came before the end is read first */
		if (conn->rc->reader->len == before)
			break;
		total += conn->rc->reader->len - before;
	}
	conn->received += total;
}

/* Nothing was asked for, so nothing may come: it would be built where nobody keeps it. */
static PpRedisResult
expect_nothing(PpRedis *conn)
{
	if (unparsed(conn) == 0 && !read_some(conn))
		return fail_hiredis(conn);
	return unparsed(conn) > 0 ? fail_unasked(conn) : PP_REDIS_NOTHING;
}

/*
 * pp_redis_poll
 *		Writes and reads without waiting.  Returns PP_REDIS_REPLY with the next reply, built in the
 *		reply target; error replies of commands are replies, too.  PP_REDIS_NOTHING: wait and poll
 *		again; there may be more on the socket, because a call reads only so much at a time.
 */
PpRedisResult
pp_redis_poll(PpRedis *conn, PpReply **reply)
{
	bool has_read = false;

	if (conn->rc == NULL)
		return PP_REDIS_FAILED;
	if (!pp_redis_flush(conn))
		return PP_REDIS_FAILED;
	if (conn->connecting)
		return PP_REDIS_NOTHING;
	for (;;)
	{
		void *object = NULL;

		if (conn->login_count == 0 && conn->outstanding == 0)
			return expect_nothing(conn);
		if (redisReaderGetReply(conn->rc->reader, &object) != REDIS_OK)
		{
			conn->rc->err = conn->rc->reader->err;
			strlcpy(conn->rc->errstr, conn->rc->reader->errstr, sizeof(conn->rc->errstr));
			return fail_hiredis(conn);
		}
		if (object != NULL && conn->login_count > 0)
		{
			if (pp_redis_login_step(conn, object) == PP_REDIS_FAILED || !pp_redis_flush(conn))
				return PP_REDIS_FAILED;
			if (conn->login_count == 0)
				pp_redis_address_works(conn);
		}
		else if (object != NULL)
		{
			conn->outstanding--;
			/* With more behind it than was asked for, it may be the reply to something else. */
			if (conn->outstanding == 0 && unparsed(conn) > 0)
				return fail_unasked(conn);
			*reply = object;
			return PP_REDIS_REPLY;
		}
		else if (line_is_endless(conn))
			return pp_redis_fail(conn, PP_REDIS_CLASS_MOMENT, "redis_protocol",
								 "a reply of Redis could not be understood: a line of more than "
								 "%zu bytes",
								 MAX_LINE);
		else if (string_is_too_large(conn))
		{
			conn->target.over_limit = true;
			return fail_hiredis(conn);
		}
		else if (has_read)
			return PP_REDIS_NOTHING;
		else if (!(has_read = read_some(conn)))
			return fail_hiredis(conn);
	}
}

const PpRedisError *
pp_redis_error(const PpRedis *conn)
{
	return &conn->error;
}

/* The version of hiredis that this was built with. */
const char *
pp_redis_library(void)
{
	return CppAsString2(HIREDIS_MAJOR) "." CppAsString2(HIREDIS_MINOR) "." CppAsString2(
		HIREDIS_PATCH);
}
