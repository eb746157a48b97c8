/*
 * column_rules.c
 *		Check what a user says about columns: "columns" of postpipe_create_pipeline().
 *
 * generate.c takes what it knows and passes over the rest, because a target may lose a column and
 * get it back.  A word that is spelled wrong is to be noticed when the pipeline is made.
 */
#include "pipeline.h"

#include "access/htup_details.h"
#include "catalog/pg_attribute.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

static void
refuse(const char *message)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s", message),
			 errhint("It is as in {\"title\": {\"fields\": [\"text\", \"title\"], \"merge\": "
					 "\"replace\", \"empty\": \"null\"}}; all three are optional.")));
}

static bool
is_word(const JsonbValue *value, const char *word)
{
	return value->type == jbvString && value->val.string.len == (int) strlen(word) &&
		   strncmp(value->val.string.val, word, strlen(word)) == 0;
}

/* An array of names. */
static void
check_fields(const char *column, const JsonbValue *value)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue item;
	bool ok = value->type == jbvBinary && JsonContainerIsArray(value->val.binary.data) &&
			  JsonContainerSize(value->val.binary.data) > 0;

	if (ok)
	{
		it = JsonbIteratorInit(value->val.binary.data);
		while ((token = JsonbIteratorNext(&it, &item, true)) != WJB_DONE)
			ok &= token != WJB_ELEM || (item.type == jbvString && item.val.string.len > 0);
	}
	if (!ok)
		refuse(psprintf("\"fields\" of column \"%s\" must be an array of names", column));
}

/* The rule of one column; "merge" is left to generate.c. */
static void
check_rule(const char *column, const JsonbValue *rule)
{
	JsonbIterator *it;
	JsonbValue key;
	JsonbValue value;

	if (rule->type != jbvBinary || !JsonContainerIsObject(rule->val.binary.data))
		refuse(psprintf("the rule of column \"%s\" must be a JSON object", column));
	it = JsonbIteratorInit(rule->val.binary.data);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &value, true);
		if (is_word(&key, "fields"))
			check_fields(column, &value);
		else if (is_word(&key, "empty"))
		{
			if (!is_word(&value, "null") && !is_word(&value, "keep"))
				refuse(psprintf("\"empty\" of column \"%s\" must be \"null\" or \"keep\"", column));
		}
		else if (!is_word(&key, "merge"))
			refuse(psprintf("unrecognized \"%s\" in the rule of column \"%s\"",
							pnstrdup(key.val.string.val, key.val.string.len), column));
	}
}

static void
check_column(Oid target, const char *column)
{
	HeapTuple tuple = SearchSysCacheAttName(target, column);
	bool ok = false;

	if (HeapTupleIsValid(tuple))
	{
		Form_pg_attribute att = (Form_pg_attribute) GETSTRUCT(tuple);

		ok = att->attnum > 0 && !att->attgenerated && att->attidentity != ATTRIBUTE_IDENTITY_ALWAYS;
		ReleaseSysCache(tuple);
	}
	if (!ok)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("\"%s\" in columns is not a column of table \"%s\" that can be filled",
						column, get_rel_name(target)),
				 errhint("The names are those of the table; those of the event are in "
						 "\"fields\".")));
}

/* Throws when "columns" is not what the target (InvalidOid: a statement) can use. */
void
pp_column_rules_check(const Jsonb *columns, Oid target)
{
	JsonbIterator *it;
	JsonbValue key;
	JsonbValue rule;

	if (!OidIsValid(target))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						errmsg("columns is for a pipeline with a target, not with a statement")));
	if (!JB_ROOT_IS_OBJECT(columns))
		refuse("columns must be a JSON object");
	it = JsonbIteratorInit((JsonbContainer *) &columns->root);
	(void) JsonbIteratorNext(&it, &key, true);
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		char *column = pnstrdup(key.val.string.val, key.val.string.len);

		(void) JsonbIteratorNext(&it, &rule, true);
		check_rule(column, &rule);
		if (strcmp(column, "*") != 0)
			check_column(target, column);
	}
}
