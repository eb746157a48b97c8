/*
 * redis_server.c
 *		A Redis server of a pipeline's own: a foreign server of the wrapper postpipe_redis.
 *
 * The server's own catalogs have what is needed: a name with an address (CREATE SERVER), who may use it
 * (GRANT USAGE), and a log-in for each role that only this role and superusers can read (CREATE USER
 * MAPPING).  So there is no password where others see it, and pg_dump knows all of it.  The wrapper has no
 * handler: there are no foreign tables.
 */
#include "redis_server.h"

#include "access/reloptions.h"
#include "catalog/pg_foreign_server.h"
#include "catalog/pg_user_mapping.h"
#include "commands/defrem.h"
#include "fmgr.h"
#include "foreign/foreign.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/syscache.h"

#include "compat.h"

#define WRAPPER "postpipe_redis"

PG_FUNCTION_INFO_V1(postpipe_redis_validator);

static void
check_url(const char *value)
{
	PpRedisUrl url;
	char why[PP_REASON_LEN];

	/* The value is not repeated: it may hold a password. */
	if (!pp_redis_url_parse(value, &url, why, sizeof(why)))
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("invalid value for option \"url\""), errdetail("%s", why)));
	if (url.password[0] != '\0' || url.user[0] != '\0')
		ereport(ERROR, (errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
						errmsg("option \"url\" must not contain a user or a password"),
						errdetail("Everybody may read the options of a server."),
						errhint("CREATE USER MAPPING has the options user and password.")));
}

static void
check_length(const DefElem *option, size_t size)
{
	if (strlen(defGetString((DefElem *) option)) >= size)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_INVALID_ATTRIBUTE_VALUE),
				 errmsg("option \"%s\" is longer than %zu bytes", option->defname, size - 1)));
}

/* postpipe_redis_validator(options, catalog): url of a server; user and password of a user mapping. */
Datum
postpipe_redis_validator(PG_FUNCTION_ARGS)
{
	Oid catalog = PG_GETARG_OID(1);
	ListCell *lc;

	foreach (lc, untransformRelOptions(PG_GETARG_DATUM(0)))
	{
		const DefElem *option = lfirst(lc);
		PpRedisUrl *url = NULL;

		if (catalog == ForeignServerRelationId && strcmp(option->defname, "url") == 0)
			check_url(defGetString((DefElem *) option));
		else if (catalog == UserMappingRelationId && strcmp(option->defname, "user") == 0)
			check_length(option, sizeof(url->user));
		else if (catalog == UserMappingRelationId && strcmp(option->defname, "password") == 0)
			check_length(option, sizeof(url->password));
		else
			ereport(ERROR,
					(errcode(ERRCODE_FDW_INVALID_OPTION_NAME),
					 errmsg("invalid option \"%s\"", option->defname),
					 errhint("A server has the option url, a user mapping user and password.")));
	}
	PG_RETURN_VOID();
}

static const char *
find_option(List *options, const char *name)
{
	ListCell *lc;

	foreach (lc, options)
		if (strcmp(((DefElem *) lfirst(lc))->defname, name) == 0)
			return defGetString(lfirst(lc));
	return "";
}

/* The options of the owner's user mapping, else of the one for PUBLIC; NIL: there is none, so no log-in. */
static List *
get_login(Oid owner, Oid server)
{
	HeapTuple tuple =
		SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(owner), ObjectIdGetDatum(server));
	List *options = NIL;
	Datum value;
	bool isnull;

	if (!HeapTupleIsValid(tuple))
		tuple = SearchSysCache2(USERMAPPINGUSERSERVER, ObjectIdGetDatum(InvalidOid),
								ObjectIdGetDatum(server));
	if (!HeapTupleIsValid(tuple))
		return NIL;
	value = SysCacheGetAttr(USERMAPPINGUSERSERVER, tuple, Anum_pg_user_mapping_umoptions, &isnull);
	if (!isnull)
		options = untransformRelOptions(value);
	ReleaseSysCache(tuple);
	return options;
}

/*
 * pp_redis_server_find
 *		Where the server of this name is, and how a pipeline of `owner` logs in there.  Returns NULL, or
 *		in words why it cannot be used; in the current memory context.  Needs a transaction.
 */
char *
pp_redis_server_find(const char *name, Oid owner, PpRedisUrl *url)
{
	ForeignServer *server = GetForeignServerByName(name, true);
	char why[PP_REASON_LEN];
	List *login;

	if (server == NULL || strcmp(GetForeignDataWrapper(server->fdwid)->fdwname, WRAPPER) != 0)
		return psprintf("server \"%s\" of foreign-data wrapper " WRAPPER " does not exist", name);
	if (!pp_may_use_server(server->serverid, owner))
		return psprintf("role \"%s\" must have USAGE on server \"%s\"",
						GetUserNameFromId(owner, true), name);
	if (!pp_redis_url_parse(find_option(server->options, "url"), url, why, sizeof(why)))
		return psprintf("option \"url\" of server \"%s\" is not usable: %s", name, why);
	login = get_login(owner, server->serverid);
	strlcpy(url->user, find_option(login, "user"), sizeof(url->user));
	strlcpy(url->password, find_option(login, "password"), sizeof(url->password));
	return NULL;
}
