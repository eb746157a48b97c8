/*
 * posts.c
 *		The built-in pipeline: posts, from stream:posts:parsed.
 *
 * It is a pipeline like any other, but it exists without a row in postpipe_pipeline (a row that
 * the extension script inserted would make pg_dump | psql fail), and its table is made by the
 * worker when it is missing, so that the table is the user's and not a member of the extension.
 */
#include "pipeline.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

#include "target.h"

/*
 * Where each column of posts comes from and how it is merged.  "*" is the rule for columns that
 * are not named: producers write '' for what is absent, so '' is NULL throughout.
 */
static const char posts_columns[] =
	"{\"*\": {\"empty\": \"null\"},"
	" \"id\": {\"fields\": [\"post_id\", \"id\"], \"merge\": \"first\"},"
	" \"telegram_message_id\": {\"fields\": [\"telegram_message_id\", \"tg_message_id\"]},"
	" \"content\": {\"fields\": [\"text\", \"content\"], \"merge\": \"replace\"},"
	" \"media_urls\": {\"fields\": [\"media_urls\", \"urls\"]},"
	" \"created_at\": {\"fields\": [\"occurred_at\", \"created_at\", \"timestamp\"],"
	" \"merge\": \"first\"},"
	" \"views_count\": {\"merge\": \"greatest\"},"
	" \"forwards_count\": {\"merge\": \"greatest\"},"
	" \"reactions_count\": {\"merge\": \"greatest\"},"
	" \"entry_id\": {\"fields\": [\"$id\"], \"merge\": \"replace\"}}";

/* entry_id is text, not postpipe_id: dropping the extension must not touch the table. */
static const char posts_table[] = "CREATE TABLE %s (\n"
								  "    id text UNIQUE,\n"
								  "    channel_id text,\n"
								  "    telegram_message_id bigint,\n"
								  "    content text,\n"
								  "    media_urls jsonb,\n"
								  "    posted_at timestamptz,\n"
								  "    created_at timestamptz NOT NULL DEFAULT now(),\n"
								  "    url text,\n"
								  "    telegram_post_url text,\n"
								  "    has_media boolean,\n"
								  "    is_edited boolean,\n"
								  "    views_count bigint NOT NULL DEFAULT 0,\n"
								  "    forwards_count bigint NOT NULL DEFAULT 0,\n"
								  "    reactions_count bigint NOT NULL DEFAULT 0,\n"
								  "    entry_id text,\n"
								  "    PRIMARY KEY (channel_id, telegram_message_id)\n"
								  ")";

/* The definition, in the current memory context. */
PpPipeline *
pp_posts_definition(const PpExtension *ext)
{
	PpPipeline *p = palloc0(sizeof(PpPipeline));

	p->name = pstrdup(PP_POSTS_PIPELINE);
	p->owner = ext->owner;
	p->stream = pstrdup(PP_POSTS_STREAM);
	p->group = pstrdup(PP_POSTS_GROUP);
	p->target = pstrdup(PP_POSTS_TARGET);
	p->key = list_make2(pstrdup("channel_id"), pstrdup("telegram_message_id"));
	p->on_conflict = pstrdup("newer");
	p->newer_by = pstrdup("entry_id");
	p->columns = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(posts_columns)));
	p->event_types = list_make2(pstrdup("post.created"), pstrdup("post.updated"));
	p->search_path = psprintf("public, %s", ext->schema_name);
	p->workers = 1;
	p->enabled = true;
	p->options = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
	p->builtin = true;
	return p;
}

/* Is it the pipeline posts with the table that we make?  The user can give that name another one. */
bool
pp_posts_owns(const PpPipeline *p)
{
	return strcmp(p->name, PP_POSTS_PIPELINE) == 0 && p->target != NULL &&
		   strcmp(p->target, PP_POSTS_TARGET) == 0;
}

/*
 * pp_posts_adapt
 *		A table of that name that was there before has no column entry_id: then the later entry wins, as in
 *		any pipeline without newer_by.
 */
void
pp_posts_adapt(PpPipeline *p, Relation target)
{
	if (!pp_posts_owns(p) || p->newer_by == NULL || strcmp(p->newer_by, "entry_id") != 0 ||
		get_attnum(RelationGetRelid(target), "entry_id") != InvalidAttrNumber)
		return;
	p->on_conflict = "update";
	p->newer_by = NULL;
}

/*
 * pp_posts_create_table
 *		Makes the table when it is missing, as the pipeline's owner.  Needs a transaction and an
 *		active snapshot.
 */
void
pp_posts_create_table(const PpExtension *ext, const PpPipeline *p)
{
	Relation rel = pp_target_open(p, RowExclusiveLock);
	Oid save_user;
	int save_context;

	if (rel != NULL)
	{
		relation_close(rel, NoLock);
		return;
	}
	GetUserIdAndSecContext(&save_user, &save_context);
	SetUserIdAndSecContext(p->owner, save_context | SECURITY_RESTRICTED_OPERATION);
	if (SPI_connect() != SPI_OK_CONNECT ||
		SPI_execute(psprintf(posts_table, p->target), false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "could not create table %s", p->target);
	SPI_finish();
	SetUserIdAndSecContext(save_user, save_context);
	ereport(LOG, (errmsg("postpipe: created table %s for pipeline \"%s\"", p->target, p->name)));
}
