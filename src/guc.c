/*
 * guc.c
 *		Define and read the settings, and set the server's for the time of a call.
 *
 * postpipe.redis_url may hold a password, and pg_settings shows values to roles that must not see
 * it.  So the check hook takes the password out of the value that is stored and keeps the parsed
 * URL, password included, in the setting's private "extra" data.
 */
#include "guc.h"

#include <limits.h>

#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/varlena.h"
#include "storage/fd.h"

char *pp_guc_databases;
bool pp_guc_enabled;
int pp_guc_batch_size;
int pp_guc_batch_bytes;
int pp_guc_max_retries;
int pp_guc_retry_delay;
int pp_guc_dead_letter_retention;
int pp_guc_claim_idle;
int pp_guc_max_workers;

static char *redis_url_setting;
static char *redis_password_file;
static PpRedisUrl *redis_url; /* the setting's extra data */
static emit_log_hook_type prev_emit_log_hook;

#if PG_VERSION_NUM < 160000
#define guc_malloc(elevel, size) malloc(size)
#define guc_strdup(elevel, str)  strdup(str)
#define guc_free(ptr)            free(ptr)
#endif

static bool
check_redis_url(char **newval, void **extra, GucSource source)
{
	PpRedisUrl url;
	char why[PP_REASON_LEN];
	char *display;

	if (!pp_redis_url_parse(*newval, &url, why, sizeof(why)))
	{
		/* The server's own message would repeat the value, which may hold a password. */
		GUC_check_errmsg("invalid value for parameter \"postpipe.redis_url\"");
		GUC_check_errdetail("%s", why);
		return false;
	}
	display = guc_strdup(LOG, url.display);
	*extra = guc_malloc(LOG, sizeof(url));
	if (display == NULL || *extra == NULL)
		return false;
	memcpy(*extra, &url, sizeof(url));
	guc_free(*newval);
	*newval = display;
	return true;
}

static void
assign_redis_url(const char *newval, void *extra)
{
	redis_url = extra;
}

/*
 * At a reload the postmaster logs what has changed, with name and value as they stand in the file.
 * Not with a password in it.  The message may be translated; its ID is not (guc-file.l, guc.c).
 */
static void
hide_password(ErrorData *edata)
{
	if (edata->message != NULL && edata->message_id != NULL &&
		strcmp(edata->message_id, "parameter \"%s\" changed to \"%s\"") == 0 &&
		strcasestr(edata->message, "postpipe.redis_url") != NULL)
		edata->message =
			psprintf("parameter \"postpipe.redis_url\" changed to \"%s\"", redis_url->display);
	if (prev_emit_log_hook)
		prev_emit_log_hook(edata);
}

static bool
check_databases(char **newval, void **extra, GucSource source)
{
	char *copy = pstrdup(*newval);
	List *names;
	bool ok = SplitGUCList(copy, ',', &names);
	ListCell *lc;

	if (!ok)
		GUC_check_errdetail("List syntax is invalid: it must be database names separated by "
							"commas.");
	else if (list_length(names) > PP_MAX_DATABASES)
	{
		GUC_check_errdetail("At most %d databases can be listed.", PP_MAX_DATABASES);
		ok = false;
	}
	foreach (lc, names)
		if (ok && strlen(lfirst(lc)) >= NAMEDATALEN)
		{
			GUC_check_errdetail("\"%s\" has more than %d bytes, so no database has that name.",
								(char *) lfirst(lc), NAMEDATALEN - 1);
			ok = false;
		}
	list_free(names);
	pfree(copy);
	return ok;
}

/* Defines all settings and reserves their prefix. Only while the library is preloaded. */
void
pp_guc_define(void)
{
	DefineCustomStringVariable("postpipe.databases", "Databases in which pipelines run.",
							   "Names separated by commas. Each needs CREATE EXTENSION postpipe.",
							   &pp_guc_databases, "postgres", PGC_SIGHUP, GUC_LIST_INPUT,
							   check_databases, NULL, NULL);
	DefineCustomStringVariable("postpipe.redis_url", "The Redis server that streams are read from.",
							   "redis://[user[:password]@]host[:port][/db] or unix:///path?db=n.",
							   &redis_url_setting, "redis://localhost:6379", PGC_SIGHUP,
							   GUC_SUPERUSER_ONLY, check_redis_url, assign_redis_url, NULL);
	DefineCustomStringVariable(
		"postpipe.redis_password_file", "A file whose first line is the password for Redis.",
		"Read at each connection; it wins over a password in "
		"postpipe.redis_url. Empty: none.",
		&redis_password_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	DefineCustomBoolVariable("postpipe.enabled", "Read from Redis.",
							 "Off stops all reading at reload; entries stay in their streams.",
							 &pp_guc_enabled, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("postpipe.batch_size", "Entries in a batch, at most.", NULL,
							&pp_guc_batch_size, 1000, 1, 100000, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("postpipe.batch_bytes", "Bytes in a batch, about.",
							"A batch of large entries is read in smaller numbers; one entry is "
							"always read whole.",
							&pp_guc_batch_bytes, 16 * 1024, 64, 1024 * 1024, PGC_SIGHUP,
							GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("postpipe.max_retries",
							"Attempts to apply a failing entry again before it is dead.", NULL,
							&pp_guc_max_retries, 3, 0, 1000, PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("postpipe.retry_delay",
							"Wait before the first retry; it doubles with each further one.", NULL,
							&pp_guc_retry_delay, 5000, 10, 3600 * 1000, PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("postpipe.dead_letter_retention",
							"Age at which dead letters are discarded.", "0 keeps them for ever.",
							&pp_guc_dead_letter_retention, 0, 0, INT_MAX, PGC_SIGHUP, GUC_UNIT_MIN,
							NULL, NULL, NULL);
	DefineCustomIntVariable(
		"postpipe.claim_idle", "Idle time after which entries of foreign consumers may be claimed.",
		NULL, &pp_guc_claim_idle, 60000, 1000, INT_MAX, PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("postpipe.max_workers",
							"Workers of all pipelines and databases, at most.",
							"Each also takes one of max_worker_processes.", &pp_guc_max_workers, 32,
							1, 1024, PGC_POSTMASTER, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("postpipe");
	prev_emit_log_hook = emit_log_hook;
	emit_log_hook = hide_password;
}

/* Puts the first line of postpipe.redis_password_file into the URL; a missing file changes nothing
 * but is said, because the log-in that follows will fail for a reason that Redis cannot tell. */
static void
read_password_file(PpRedisUrl *url)
{
	static bool complained = false;
	FILE *file = AllocateFile(redis_password_file, "r");
	char line[sizeof(url->password)];

	if (file == NULL)
	{
		if (!complained)
			ereport(LOG, (errcode_for_file_access(),
						  errmsg("could not open postpipe.redis_password_file \"%s\": %m",
								 redis_password_file)));
		complained = true;
		return;
	}
	complained = false;
	if (fgets(line, sizeof(line), file) != NULL)
	{
		line[strcspn(line, "\r\n")] = '\0';
		strlcpy(url->password, line, sizeof(url->password));
	}
	FreeFile(file);
}

/* Copies the server's address and log-in as the settings have them now. */
void
pp_guc_redis_url(PpRedisUrl *url)
{
	memcpy(url, redis_url, sizeof(*url));
	if (redis_password_file[0] != '\0')
		read_password_file(url);
}

/* The names of postpipe.databases, in the current memory context. */
List *
pp_guc_database_list(void)
{
	List *names = NIL;

	if (!SplitGUCList(pstrdup(pp_guc_databases), ',', &names))
		return NIL; /* cannot happen: the check hook parsed it */
	return names;
}

bool
pp_guc_lists_database(const char *datname)
{
	ListCell *lc;

	foreach (lc, pp_guc_database_list())
	{
		if (strcmp((const char *) lfirst(lc), datname) == 0)
			return true;
	}
	return false;
}

/*
 * pp_guc_set_for_call
 *		Sets one of the server's settings, one that every user may set, to the end of the caller's GUC
 *		nest level.  Nothing is done where it has this value: to set it and to put it back takes much longer
 *		than to look.
 */
void
pp_guc_set_for_call(const char *name, const char *value)
{
	const char *now = GetConfigOption(name, true, false);

	if (now == NULL || strcmp(now, value) != 0)
		(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
								 false);
}

/* Under these, values and texts mean the same everywhere. */
static const struct
{
	const char *name;
	const char *value;
} styles[] = {
	{"TimeZone", "UTC"},     {"DateStyle", "ISO, MDY"},   {"IntervalStyle", "postgres"},
	{"bytea_output", "hex"}, {"extra_float_digits", "1"},
};

/* Sets the styles in which statements are generated and run, as pp_guc_set_for_call(). */
void
pp_guc_set_styles_for_call(void)
{
	for (int i = 0; i < lengthof(styles); i++)
		pp_guc_set_for_call(styles[i].name, styles[i].value);
}

/* The same for good, in a process of ours: then each call finds them set. */
void
pp_guc_set_styles(void)
{
	for (int i = 0; i < lengthof(styles); i++)
		SetConfigOption(styles[i].name, styles[i].value, PGC_USERSET, PGC_S_SESSION);
}
