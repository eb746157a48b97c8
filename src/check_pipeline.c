/*
 * check_pipeline.c
 *		The doctor's checks of a pipeline, as far as PostgreSQL can tell.
 */
#include "check.h"

#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/acl.h"

#include "target.h"

static void
look_at_state(PpCheck *c)
{
	char **row =
		pp_check_ask(c, "SELECT state, reason FROM %1$s.postpipe_stats WHERE pipeline = $1");
	const char *reason = row && row[1] ? row[1] : "";
	char *detail = psprintf("%s%s%s", row ? row[0] : "unknown", *reason ? ": " : "", reason);
	const char *name = c->p->name;

	if (row == NULL || strcmp(row[0], "stopped") == 0 || strcmp(row[0], "failed") == 0)
		pp_check_error(c, detail,
					   psprintf("SELECT * FROM postpipe_events WHERE pipeline = '%s';", name));
	else if (strcmp(row[0], "fenced") == 0 || strcmp(row[0], "disarmed") == 0)
		pp_check_error(c, detail,
					   psprintf("If it is to read from here, and nowhere else any more: SELECT "
								"postpipe_resume('%s', take_over => true);",
								name));
	else if (strcmp(row[0], "paused") == 0)
		pp_check_warning(c, detail, psprintf("SELECT postpipe_resume('%s');", name));
	else if (strcmp(row[0], "running") == 0 || strcmp(row[0], "idle") == 0)
		pp_check_ok(c, detail);
	else
		pp_check_warning(c, detail,
						 psprintf("SELECT * FROM postpipe_events WHERE pipeline = '%s';", name));
}

static bool
target_exists(const PpPipeline *p)
{
	Relation rel = pp_target_open(p, AccessShareLock);

	if (rel != NULL)
		table_close(rel, AccessShareLock);
	return rel != NULL;
}

/* The statement over an empty batch, as its owner, says what is wrong with table, index and grants. */
static void
look_at_target(PpCheck *c)
{
	PpPipeline copy = *c->p;

	if (RecoveryInProgress() || XactReadOnly)
		pp_check_warning(c, "not checked: nothing can be written here", NULL);
	else if (!has_privs_of_role(GetUserId(), c->p->owner))
		pp_check_warning(c,
						 psprintf("not checked: that is for members of role \"%s\"",
								  GetUserNameFromId(c->p->owner, true)),
						 NULL);
	else if (pp_function_has_deferred())
		pp_check_warning(
			c, "not checked: this transaction has deferred constraints or triggers to check",
			"Commit first, or run SET CONSTRAINTS ALL IMMEDIATE.");
	else if (pp_posts_owns(c->p) && c->p->target != NULL && !target_exists(c->p))
		pp_check_warning(c, psprintf("table %s does not exist yet", c->p->target),
						 "The pipeline makes it when it starts.");
	else
	{
		(void) pp_check_definition(c->ext, &copy, false);
		pp_check_ok(c, "the statement can be run as the owner");
	}
}

static void
look_at_dead_letters(PpCheck *c)
{
	char **row =
		pp_check_ask(c, "SELECT count(*), max(last_failed_at) FROM %1$s.postpipe_dead_letter "
						"WHERE pipeline = $1 AND state = 'dead'");

	if (strcmp(row[0], "0") == 0)
		pp_check_ok(c, "no entry is dead");
	else
		pp_check_warning(c, psprintf("%s entries are dead, the last one since %s", row[0], row[1]),
						 psprintf("SELECT sqlstate, message, count(*) FROM postpipe_dlq WHERE "
								  "pipeline = '%s' GROUP BY 1, 2; then postpipe_replay or "
								  "postpipe_discard.",
								  c->p->name));
}

static void
look_at_lost(PpCheck *c)
{
	/* A sum is of those ranges of which the number is known. */
	char **row = pp_check_ask(
		c, "SELECT count(*), concat(CASE WHEN sum(entries) IS NULL THEN 'an unknown number of' "
		   "WHEN count(entries) < count(*) THEN 'at least ' END, sum(entries)), max(noticed_at) "
		   "FROM %1$s.postpipe_lost_range WHERE pipeline = $1");

	if (strcmp(row[0], "0") == 0)
		pp_check_ok(c, "no entry was lost");
	else
		pp_check_warning(
			c,
			psprintf(
				"%s entries are lost, because they were gone before they could be applied, or a "
				"rewind passed over them; last noticed at %s",
				row[1], row[2]),
			psprintf("SELECT * FROM postpipe_lost WHERE pipeline = '%s'; a higher MAXLEN of the "
					 "stream gives more time.",
					 c->p->name));
}

static void
look_at_audit(PpCheck *c)
{
	char **row = pp_check_ask(c, "SELECT balance, reason FROM %1$s.postpipe_audit "
								 "WHERE pipeline = $1 ORDER BY epoch DESC LIMIT 1");
	char *query =
		psprintf("SELECT * FROM postpipe_audit WHERE pipeline = '%s' ORDER BY epoch;", c->p->name);

	if (row == NULL)
		pp_check_ok(c, "nothing was read yet");
	else if (row[0] == NULL)
		pp_check_warning(c, psprintf("no balance: %s", row[1]), query);
	else if (strcmp(row[0], "0") == 0)
		pp_check_ok(c, "every entry is accounted for");
	else
		pp_check_error(c, psprintf("the balance is %s, not 0", row[0]), query);
}

const PpCheckRule pp_check_pipeline_rules[] = {
	{"state", look_at_state}, {"target", look_at_target}, {"dead_letters", look_at_dead_letters},
	{"lost", look_at_lost},   {"audit", look_at_audit},   {NULL, NULL},
};
