/*
 * check_stream.c
 *		The doctor's checks of a pipeline's stream and group, which ask Redis.
 */
#include "check.h"

#include "utils/builtins.h"

#include "consumer.h"
#include "owner_key.h"
#include "redis_reply.h"

#define MAX_LAG        0.9                       /* as the alert PostpipeTrimmingAhead has it … */
#define MIN_LAG        100                       /* … of the stream, and entries */
#define LEAKED_IDLE_MS (3600 * INT64CONST(1000)) /* as postpipe_reap_consumers() has it */

/*
 * What a worker sends, with arguments that the command takes: $s is the stream, $g the group, $h the owner's key,
 * $d the stream of dead letters.  HINT_ACL in redis_error.c has the same commands.
 */
static const char *const needed[] = {
	"XREADGROUP GROUP $g postpipe COUNT 1 STREAMS $s >",
	"XACK $s $g 0-1",
	"XGROUP CREATE $s $g 0",
	"XINFO GROUPS $s",
	"XPENDING $s $g",
	"XRANGE $s - + COUNT 1",
	"XCLAIM $s $g postpipe 0 0-1",
	"HGET $h nonce",
	"HGETALL $h",
	"HSET $h a b",
	"HINCRBY $h a 1",
	"HDEL $h a",
	"DEL $h",
	"WATCH $h",
	"MULTI",
	"EXEC",
	"EVAL script 2 $s $h",
	NULL,
};

/* What it can do without. */
static const char *const useful[] = {"CLIENT LIST", "INFO", "MEMORY USAGE $s", "XADD $d * a b",
									 NULL};

/* A word of a command, or what it stands for; NULL: the pipeline has no such thing. */
static const char *
make_word(const PpPipeline *p, const char *word, size_t len)
{
	if (len != 2 || word[0] != '$')
		return pnstrdup(word, len);
	return word[1] == 's'   ? p->stream
		   : word[1] == 'g' ? p->group
		   : word[1] == 'd' ? pp_pipeline_option(p, "dead_letter_stream")
							: pp_owner_key_name(p);
}

/*
 * Would Redis let this user run it?  The reply is OK, or says why not; or an error: that cannot be asked.  NULL: it is
 * not sent.
 */
static PpReply *
dry_run(PpCheck *c, PpString user, const char *command)
{
	PpString words[16] = {{"ACL", 3}, {"DRYRUN", 6}, user};
	int n = 3;

	while (*command != '\0' && n < (int) lengthof(words))
	{
		size_t len = strcspn(command, " ");
		const char *word = make_word(c->p, command, len);

		if (word == NULL)
			return NULL;
		words[n++] = (PpString){word, strlen(word)};
		command += len + (command[len] == ' ');
	}
	pp_redis_send_strings(c->conn, n, words);
	return pp_function_reply(c->conn);
}

/* Those that Redis would refuse, with commas.  It stops at an error, which is left in *reply. */
static char *
find_refused(PpCheck *c, PpString user, const char *const *commands, PpReply **reply)
{
	StringInfoData refused;

	initStringInfo(&refused);
	for (; *commands != NULL && (*reply)->type != PP_REPLY_ERROR; commands++)
	{
		PpReply *answer = dry_run(c, user, *commands);

		if (answer == NULL)
			continue;
		*reply = answer;
		if (answer->type == PP_REPLY_STRING)
			appendStringInfo(&refused, "%s%.*s", refused.len ? ", " : "",
							 (int) strcspn(*commands, " "), *commands);
	}
	return refused.data;
}

static void
look_at_rights(PpCheck *c)
{
	PpRedisError error;
	PpReply *reply;
	PpString user;
	char *refused;
	char *missing;

	if (!pp_check_has_redis(c))
		return;
	pp_redis_error_reply(&error, "NOPERM", strlen("NOPERM"));
	pp_redis_send(c->conn, "ACL WHOAMI");
	reply = pp_function_reply(c->conn);
	user = (PpString){reply->str, reply->len};
	refused = find_refused(c, user, needed, &reply);
	missing = find_refused(c, user, useful, &reply);
	if (reply->type == PP_REPLY_ERROR)
		pp_check_warning(c, psprintf("Redis does not tell what the user may do: %s", reply->str),
						 pp_redis_error_hint(&error));
	else if (*refused != '\0')
		pp_check_error(c, psprintf("the Redis user may not run %s", refused),
					   pp_redis_error_hint(&error));
	else if (*missing != '\0')
		pp_check_warning(
			c, psprintf("the Redis user may not run %s, without which a worker does less", missing),
			pp_redis_error_hint(&error));
	else
		pp_check_ok(c, "the Redis user may run what a worker needs");
}

static void
look_at_stream(PpCheck *c)
{
	PpReply *reply;

	if (!pp_check_has_redis(c))
		return;
	pp_redis_send(c->conn, "TYPE %s", c->p->stream);
	reply = pp_function_reply(c->conn);
	if (reply->type != PP_REPLY_STATUS)
		pp_function_fail(reply);
	if (strcmp(reply->str, "none") == 0)
		pp_check_ok(c, psprintf("stream \"%s\" does not exist yet", c->p->stream));
	else if (strcmp(reply->str, "stream") == 0)
		pp_check_ok(c, psprintf("\"%s\" is a stream", c->p->stream));
	else
		pp_check_error(c, psprintf("\"%s\" is a %s, not a stream", c->p->stream, reply->str),
					   "Make the pipeline anew with another stream, or delete this key in Redis.");
}

static void
look_at_group(PpCheck *c)
{
	PpStreamFacts group;

	if (!pp_check_has_redis(c))
		return;
	group = pp_function_group(c->conn, c->p);
	if (group.group_exists)
		pp_check_ok(c, psprintf("group \"%s\" has " INT64_FORMAT " pending entries", c->p->group,
								group.pending));
	else if (!group.key_exists)
		pp_check_ok(c, psprintf("group \"%s\" will be made with the stream", c->p->group));
	else
		pp_check_warning(c, psprintf("the stream has no group \"%s\"", c->p->group),
						 psprintf("The worker makes it when it starts; or SELECT "
								  "postpipe_create_group('%s');",
								  c->p->name));
}

/* Consumers that hold entries and will not come back, and those that are left over. */
static void
look_at_consumers(PpCheck *c)
{
	PpConsumer *consumers;
	int64 held = 0;
	int holders = 0;
	int leaked = 0;
	int n;

	if (!pp_check_has_redis(c))
		return;
	if (!pp_function_group(c->conn, c->p).group_exists)
	{
		pp_check_ok(c, "there is no group yet");
		return;
	}
	consumers = pp_function_consumers(c->conn, c->p, &n);
	for (int i = 0; i < n; i++)
	{
		PpConsumerKind kind = pp_consumer_kind(c->pipelines, c->p, consumers[i].name);

		if (kind != PP_CONSUMER_FOREIGN && kind != PP_CONSUMER_DEAD)
			continue;
		held += consumers[i].pending;
		holders += consumers[i].pending > 0;
		leaked += consumers[i].pending == 0 && consumers[i].idle_ms >= LEAKED_IDLE_MS;
	}
	if (holders > 0)
		pp_check_warning(
			c,
			psprintf(INT64_FORMAT " entries are pending for %d consumers that are no "
								  "workers of this pipeline",
					 held, holders),
			psprintf("SELECT * FROM postpipe_consumers('%1$s'); and, if nobody applies "
					 "them, SELECT postpipe_claim('%1$s');",
					 c->p->name));
	else if (leaked > 0)
		pp_check_warning(c, psprintf("%d consumers are empty and were idle for an hour", leaked),
						 psprintf("SELECT * FROM postpipe_reap_consumers('%s');", c->p->name));
	else
		pp_check_ok(c, psprintf("the group has %d consumers, none of them left over", n));
}

/* Is what was not read yet being trimmed, or about to be? */
static void
look_at_trimming(PpCheck *c)
{
	PpReply *replies[PP_STREAM_LOOSE_REPLIES];
	PpStreamFacts facts;
	PpRedisError error;

	if (!pp_check_has_redis(c))
		return;
	pp_stream_send_loose_facts(c->conn, c->p->stream, c->p->group);
	for (int i = 0; i < PP_STREAM_LOOSE_REPLIES; i++)
		replies[i] = pp_function_reply(c->conn);
	if (!pp_stream_parse_loose_facts(replies, c->p->group, &facts, &error))
		pp_check_error(c, error.message, pp_redis_error_hint(&error));
	else if (!facts.group_exists)
		pp_check_ok(c, "there is no group yet");
	else if (pp_id_compare(facts.max_deleted, facts.last_delivered) > 0)
		pp_check_warning(
			c, "entries were deleted from the stream that the group had not read",
			"Give the stream a higher MAXLEN, or trim by the ID that the group has read "
			"(MINID).");
	else if (facts.undelivered > MIN_LAG && facts.undelivered > facts.length * MAX_LAG)
		pp_check_warning(
			c,
			psprintf("the group has " INT64_FORMAT " of " INT64_FORMAT
					 " entries to read: the next ones to be trimmed",
					 facts.undelivered, facts.length),
			"Give the stream a higher MAXLEN; SELECT * FROM postpipe_status shows whether "
			"the pipeline catches up.");
	else
		pp_check_ok(c, "nothing was trimmed that was not read");
}

const PpCheckRule pp_check_stream_rules[] = {
	{"rights", look_at_rights},       {"stream", look_at_stream},     {"group", look_at_group},
	{"consumers", look_at_consumers}, {"trimming", look_at_trimming}, {NULL, NULL},
};
