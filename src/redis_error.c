/*
 * redis_error.c
 *		Classify Redis's error replies.
 *
 * An error reply begins with a code word (RESP: "-CODE text").  The words are those of Redis 6.2 to
 * 8.x and Valkey (server.c, createSharedObjects; t_stream.c; acl.c); whatever is not in the table
 * is taken as passing, shown, and tried again: Redis's own failures are never an entry's.
 */
#include "redis_error.h"

#include "mb/pg_wchar.h"

typedef struct ErrorRule
{
	const char *prefix;
	PpRedisClass class;
	const char *code;
	const char *hint;
} ErrorRule;

#define HINT_LOGIN                                                                                   \
	"Check postpipe.redis_url and postpipe.redis_password_file, then SELECT pg_reload_conf(); of a " \
	"server of the pipeline's own, the user mapping of its owner."
/*
 * All commands that are sent, also in scripts.  docs/operations.md has the same, check_stream.c those of a worker;
 * these come first because postpipe_events keeps no more than 255 bytes of a hint.
 */
#define HINT_ACL                                                                                    \
	"The Redis user needs: ACL SETUSER <user> ~<stream> ~postpipe:* +xreadgroup +xack +xgroup "     \
	"+xinfo +xpending +xrange +xclaim +hget +hgetall +hset +hincrby +hdel +del +watch +multi "      \
	"+exec +eval +client +info +memory|usage; with a database number in the URL also +select, "     \
	"with dead_letter_stream +xadd on that key; for postpipe_publish +xadd, for postpipe_test "     \
	"+xrevrange, for postpipe_selftest +xadd +pexpire, for postpipe_check +type +time +acl|whoami " \
	"+acl|dryrun."
#define HINT_CLUSTER \
	"Redis Cluster is not supported, but for one node that holds all slots or the stream's key."
#define HINT_MASTER "This Redis is a replica; postpipe.redis_url must name the master."

/* The first match counts: longer prefixes stand before shorter ones. */
static const ErrorRule rules[] = {
	{"LOADING", PP_REDIS_CLASS_MOMENT, "redis_loading", NULL},
	{"BUSYGROUP", PP_REDIS_CLASS_MOMENT, "redis_busygroup", NULL},
	{"BUSY", PP_REDIS_CLASS_MOMENT, "redis_busy", NULL},
	{"MASTERDOWN", PP_REDIS_CLASS_MOMENT, "redis_masterdown", HINT_MASTER},
	{"READONLY", PP_REDIS_CLASS_MOMENT, "redis_readonly", HINT_MASTER},
	{"NOREPLICAS", PP_REDIS_CLASS_MOMENT, "redis_noreplicas", NULL},
	{"MISCONF", PP_REDIS_CLASS_MOMENT, "redis_misconf", NULL},
	{"CLUSTERDOWN", PP_REDIS_CLASS_MOMENT, "redis_clusterdown", HINT_CLUSTER},
	{"TRYAGAIN", PP_REDIS_CLASS_MOMENT, "redis_tryagain", HINT_CLUSTER},
	{"OOM", PP_REDIS_CLASS_MOMENT, "redis_oom",
	 "Redis has reached its maxmemory: raise it, or trim streams."},
	{"ERR max number of clients", PP_REDIS_CLASS_MOMENT, "redis_maxclients", NULL},
	{"UNBLOCKED", PP_REDIS_CLASS_STRUCTURE, "redis_unblocked", NULL},
	{"NOGROUP", PP_REDIS_CLASS_STRUCTURE, "redis_nogroup", NULL},
	{"ERR The XGROUP subcommand requires the key", PP_REDIS_CLASS_STRUCTURE, "redis_nokey", NULL},
	{"ERR no such key", PP_REDIS_CLASS_STRUCTURE, "redis_nokey", NULL},
	{"NOAUTH", PP_REDIS_CLASS_SETTING, "redis_auth", HINT_LOGIN},
	{"WRONGPASS", PP_REDIS_CLASS_SETTING, "redis_auth", HINT_LOGIN},
	{"ERR invalid password", PP_REDIS_CLASS_SETTING, "redis_auth", HINT_LOGIN},
	{"ERR AUTH", PP_REDIS_CLASS_SETTING, "redis_auth", HINT_LOGIN},
	{"ERR Client sent AUTH", PP_REDIS_CLASS_SETTING, "redis_auth", HINT_LOGIN},
	{"NOPERM", PP_REDIS_CLASS_SETTING, "redis_noperm", HINT_ACL},
	{"ERR The user executing the script", PP_REDIS_CLASS_SETTING, "redis_noperm", HINT_ACL},
	{"ERR ACL failure in script", PP_REDIS_CLASS_SETTING, "redis_noperm", HINT_ACL},
	{"DENIED", PP_REDIS_CLASS_SETTING, "redis_denied", NULL},
	{"NOPROTO", PP_REDIS_CLASS_SETTING, "redis_noproto", NULL},
	{"MOVED", PP_REDIS_CLASS_SETTING, "redis_cluster", HINT_CLUSTER},
	{"ASK", PP_REDIS_CLASS_SETTING, "redis_cluster", HINT_CLUSTER},
	{"CROSSSLOT", PP_REDIS_CLASS_SETTING, "redis_cluster", HINT_CLUSTER},
	{"WRONGTYPE", PP_REDIS_CLASS_SETTING, "redis_wrongtype",
	 "The pipeline's stream is a key of another type in Redis; look with TYPE."},
	{"ERR unknown command", PP_REDIS_CLASS_SETTING, "redis_command",
	 "postpipe needs Redis 6.2 or later, or Valkey."},
	{"ERR DB index", PP_REDIS_CLASS_SETTING, "redis_db",
	 "The database number in postpipe.redis_url is out of range."},
};

/*
 * pp_redis_copy_text
 *		Copies text that Redis has sent into a fixed buffer, for people: control bytes and what is not
 *		UTF-8 as '?', cut at a character.
 */
void
pp_redis_copy_text(char *dst, size_t size, const char *src, size_t len)
{
	size_t n = 0;

	while (len > 0 && *src != '\0')
	{
		int width = pg_utf_mblen((const unsigned char *) src);

		if ((size_t) width > len || !pg_utf8_islegal((const unsigned char *) src, width) ||
			(unsigned char) *src < ' ')
		{
			width = 1;
			if (n + 1 >= size)
				break;
			dst[n++] = '?';
		}
		else
		{
			if (n + width >= size)
				break;
			memcpy(dst + n, src, width);
			n += width;
		}
		src += width;
		len -= width;
	}
	dst[n] = '\0';
}

/* Fills *error from an error reply of `len` bytes, without the leading dash. */
void
pp_redis_error_reply(PpRedisError *error, const char *text, size_t len)
{
	error->class = PP_REDIS_CLASS_MOMENT;
	error->code = "redis_error";
	for (int i = 0; i < lengthof(rules); i++)
	{
		size_t plen = strlen(rules[i].prefix);

		if (len >= plen && strncmp(text, rules[i].prefix, plen) == 0)
		{
			error->class = rules[i].class;
			error->code = rules[i].code;
			break;
		}
	}
	pp_redis_copy_text(error->message, sizeof(error->message), text, len);
}

/* Fills *error with a failure that we noticed ourselves. `code` is a constant. */
void
pp_redis_error_set(PpRedisError *error, PpRedisClass class, const char *code, const char *fmt, ...)
{
	va_list args;
	char text[2 * PP_REASON_LEN];

	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	error->class = class;
	error->code = code;
	pp_redis_copy_text(error->message, sizeof(error->message), text, strlen(text));
}

/* The SQLSTATE for a failure of Redis: 08xxx, 28xxx for a refused log-in, HV000 for settings. */
int
pp_redis_error_sqlstate(const PpRedisError *error)
{
	if (strcmp(error->code, "redis_auth") == 0)
		return ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION;
	if (error->class == PP_REDIS_CLASS_SETTING)
		return ERRCODE_FDW_ERROR;
	return ERRCODE_CONNECTION_FAILURE;
}

/* What to do about it, a sentence, or NULL where there is nothing to do but to wait. */
const char *
pp_redis_error_hint(const PpRedisError *error)
{
	if (strcmp(error->code, "redis_connect") == 0)
		return "Check that Redis runs and that postpipe.redis_url, or the pipeline's server, is right.";
	if (strcmp(error->code, "redis_server") == 0)
		return "CREATE SERVER, CREATE USER MAPPING and GRANT USAGE ON FOREIGN SERVER make it usable; "
			   "postpipe_alter_pipeline(pipeline, reset => '{redis}') goes back to postpipe.redis_url.";
	for (int i = 0; i < lengthof(rules); i++)
		if (rules[i].hint != NULL && strcmp(rules[i].code, error->code) == 0)
			return rules[i].hint;
	return NULL;
}
