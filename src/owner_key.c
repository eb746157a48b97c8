/*
 * owner_key.c
 *		The key in Redis that names the owner of a group: read and written.
 *
 * A hash, postpipe:{<stream>}:<group>, with owner, nonce, instance, client, turns,
 * sequence:<owner>:<n> and begin:<owner>.  The braces keep it in the stream's slot of a cluster.  It is
 * written with WATCH and MULTI, not by a script: a Redis user who may not run scripts can read a
 * stream.
 */
#include "owner_key.h"

#include <unistd.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"

#include "owner.h"

/* The name of the key. */
char *
pp_owner_key_name(const PpPipeline *p)
{
	return psprintf("postpipe:{%s}:%s", p->stream, p->group);
}

/* The name of a pipeline of this database in the key. */
char *
pp_owner_name(const PpPipeline *p)
{
	return psprintf(UINT64_FORMAT ":%u:%s", GetSystemIdentifier(), MyDatabaseId, p->name);
}

/* The pipeline that such a name means, and its database; NULL: it is none of this server. */
const char *
pp_owner_parse(const char *owner, Oid *dboid)
{
	char server[32];
	char *rest;

	snprintf(server, sizeof(server), UINT64_FORMAT ":", GetSystemIdentifier());
	if (strncmp(owner, server, strlen(server)) != 0)
		return NULL;
	*dboid = (Oid) strtoul(owner + strlen(server), &rest, 10);
	return *rest == ':' ? rest + 1 : NULL;
}

/* Which server it is: copies have the same name, but not on the same host, port and directory. */
void
pp_owner_write_instance(char *instance, Size size)
{
	char host[256] = "";
	char text[sizeof(host) + MAXPGPATH];

	(void) gethostname(host, sizeof(host) - 1);
	snprintf(text, sizeof(text), "%s:%d:%s", host, PostPortNumber, DataDir);
	/* As it will be when it is read from the key. */
	pp_redis_copy_text(instance, size, text, strlen(text));
}

static void
copy_reply(char *dst, Size size, const PpReply *reply)
{
	if (pp_reply_is(reply, PP_REPLY_STRING, 0))
		pp_redis_copy_text(dst, size, reply->str, reply->len);
	else
		dst[0] = '\0';
}

/* A number in a hash, which is a string; 0 when it is not there. */
static int64
get_number(const PpReply *hash, const char *name)
{
	const PpReply *value = pp_reply_lookup(hash, name);

	return pp_reply_is(value, PP_REPLY_STRING, 1) ? strtoll(value->str, NULL, 10) : 0;
}

/* What tells this pipeline from one of the same name that was dropped. */
static void
write_identity(const PpWorker *w, char *identity, Size size)
{
	snprintf(identity, size, "%u:" INT64_FORMAT, w->ext.oid, w->def->created_at);
}

/* "<identity> <ID> <number>", as pp_owner_note_begin() has written it; false: of another pipeline, or not there. */
static bool
parse_begin(const PpWorker *w, const PpReply *reply, PpBase *begin)
{
	char ours[64];
	char identity[64];
	char id[PP_ID_LEN];
	long long added;

	write_identity(w, ours, sizeof(ours));
	if (!pp_reply_is(reply, PP_REPLY_STRING, 1) ||
		sscanf(reply->str, "%63s %41s %lld", identity, id, &added) != 3 ||
		strcmp(identity, ours) != 0 || !pp_id_parse(id, strlen(id), &begin->settled))
		return false;
	begin->added = added;
	return true;
}

/*
 * Is the owner this pipeline by another name, in the database that this one was copied from, by CREATE DATABASE ...
 * TEMPLATE?  The extension has the same OID there.
 */
static bool
is_copied_from(const PpWorker *w, const PpReply *hash, const char *owner)
{
	char name[sizeof(((PpOwnerKey *) NULL)->owner) + 32];
	PpBase begin;
	Oid database;

	snprintf(name, sizeof(name), "begin:%s", owner);
	return pp_owner_parse(owner, &database) != NULL && database != MyDatabaseId &&
		   parse_begin(w, pp_reply_lookup(hash, name), &begin);
}

bool
pp_owner_key_get(PpWorker *w, PpOwnerKey *key, PpRedisError *error)
{
	char name[sizeof(key->owner) + 32];
	PpReply *reply;

	memset(key, 0, sizeof(*key));
	pp_consume_begin_replies(w);
	pp_redis_send(w->redis, "HGETALL %s", w->owner_key);
	if (!pp_consume_receive(w, PP_REPLY_ARRAY, &reply, error))
		return false;
	copy_reply(key->nonce, sizeof(key->nonce), pp_reply_lookup(reply, "nonce"));
	copy_reply(key->owner, sizeof(key->owner), pp_reply_lookup(reply, "owner"));
	copy_reply(key->instance, sizeof(key->instance), pp_reply_lookup(reply, "instance"));
	key->client = get_number(reply, "client");
	key->turns = get_number(reply, "turns");
	for (int i = 1; i <= PP_MAX_WORKERS_PER_PIPELINE; i++)
	{
		snprintf(name, sizeof(name), "sequence:%s:%d", w->owner, i);
		key->sequences[i] = get_number(reply, name);
	}
	snprintf(name, sizeof(name), "begin:%s", w->owner);
	key->begin_known = parse_begin(w, pp_reply_lookup(reply, name), &key->begin);
	key->is_original = is_copied_from(w, reply, key->owner);
	for (size_t i = 0; i < reply->len; i += 2)
		key->others_began |= pp_reply_is(&reply->items[i], PP_REPLY_STRING, 1) &&
							 strncmp(reply->items[i].str, "begin:", strlen("begin:")) == 0 &&
							 (strcmp(reply->items[i].str, name) != 0 || !key->begin_known);
	return true;
}

/*
 * Writes the key, if it has the nonce that was seen.  What is to be made good because the database
 * has gone back is noted in the same step, as a number that no ledger has: until it is done.
 */
bool
pp_owner_key_write(PpWorker *w, const char *next_nonce, const PpOwnerKey *key, PpRedisError *error)
{
	char instance[sizeof(key->instance)];
	PpReply *reply;
	char nonce[PP_NONCE_LEN];

	pp_owner_write_instance(instance, sizeof(instance));
	pp_redis_send(w->redis, "WATCH %s", w->owner_key);
	pp_redis_send(w->redis, "HGET %s nonce", w->owner_key);
	if (!pp_consume_receive(w, PP_REPLY_STATUS, &reply, error) ||
		(reply = pp_consume_receive_any(w, error)) == NULL)
		return false;
	if (reply->type == PP_REPLY_ERROR)
	{
		pp_redis_error_reply(error, reply->str, reply->len);
		return false;
	}
	copy_reply(nonce, sizeof(nonce), reply);
	if (strcmp(nonce, key->nonce) == 0)
	{
		PpReply *refused = NULL;
		int n = 3;

		pp_redis_send(w->redis, "MULTI");
		pp_redis_send(w->redis, "HSET %s nonce %s owner %s instance %s client %lld", w->owner_key,
					  next_nonce, w->owner, instance, (long long) pp_redis_client_id(w->redis));
		if (w->went_back)
		{
			pp_redis_send(w->redis, "HSET %s sequence:%s:1 %lld", w->owner_key, w->owner,
						  (long long) PG_INT64_MAX);
			n++;
		}
		pp_redis_send(w->redis, "EXEC");
		for (int i = 0; i < n; i++)
		{
			if ((reply = pp_consume_receive_any(w, error)) == NULL)
				return false;
			/* The first one says why: EXEC, only that there was one. */
			if (reply->type == PP_REPLY_ERROR && refused == NULL)
				refused = reply;
		}
		/* What was queued may fail still. */
		for (size_t i = 0; refused == NULL && reply->type == PP_REPLY_ARRAY && i < reply->len; i++)
			if (reply->items[i].type == PP_REPLY_ERROR)
				refused = &reply->items[i];
		if (refused != NULL)
		{
			pp_redis_error_reply(error, refused->str, refused->len);
			return false;
		}
		w->client_noted = true;
		if (reply->type == PP_REPLY_ARRAY)
			return true;
	}
	pp_redis_error_set(error, PP_REDIS_CLASS_MOMENT, "owner_changed",
					   "another owner of consumer group \"%s\" came first", w->def->group);
	return false;
}

/* It is ours, and was: the connection is another one, perhaps.  Refused, it is tried with each read. */
bool
pp_owner_key_note_connection(PpWorker *w, const PpOwnerKey *key, PpRedisError *error)
{
	PpReply *reply;

	w->client_noted = key->client == pp_redis_client_id(w->redis);
	if (w->client_noted)
		return true;
	pp_redis_send(w->redis, "HSET %s client %lld", w->owner_key,
				  (long long) pp_redis_client_id(w->redis));
	if ((reply = pp_consume_receive_any(w, error)) == NULL)
		return false;
	w->client_noted = reply->type == PP_REPLY_INTEGER;
	return true;
}

/*
 * pp_owner_note_begin
 *		Notes in the key what the epoch begins with.  Before it is noted here: of an epoch that has
 *		read something, the key knows.
 */
bool
pp_owner_note_begin(PpWorker *w, const PpBase *begin, PpRedisError *error)
{
	char identity[64];
	char id[PP_ID_LEN];
	char begun[160];
	PpReply *reply;

	write_identity(w, identity, sizeof(identity));
	pp_id_print(begin->settled, id);
	snprintf(begun, sizeof(begun), "%s %s " INT64_FORMAT, identity, id, begin->added);
	pp_consume_begin_replies(w);
	pp_redis_send(w->redis, "HSET %s begin:%s %s", w->owner_key, w->owner, begun);
	return pp_consume_receive(w, PP_REPLY_INTEGER, &reply, error);
}

/* Queues the number of the last batch that is acknowledged. The reply has to be received. */
void
pp_owner_send_sequence(PpWorker *w, int64 sequence)
{
	pp_redis_send(w->redis, "HSET %s sequence:%s:%d %lld", w->owner_key, w->owner,
				  pp_my_proc->worker, (long long) sequence);
}

/* What the database had not is made good: the numbers in the key begin anew. */
bool
pp_owner_reset_sequences(PpWorker *w, PpRedisError *error)
{
	PpReply *reply;

	for (int i = 1; i <= PP_MAX_WORKERS_PER_PIPELINE; i++)
		pp_redis_send(w->redis, "HDEL %s sequence:%s:%d", w->owner_key, w->owner, i);
	for (int i = 1; i <= PP_MAX_WORKERS_PER_PIPELINE; i++)
		if (!pp_consume_receive(w, PP_REPLY_INTEGER, &reply, error))
			return false;
	return true;
}
