/*
 * generate_internal.h
 *		Shared by generate.c, generate_columns.c and generate_conflict.c.
 */
#ifndef PP_GENERATE_INTERNAL_H
#define PP_GENERATE_INTERNAL_H

#include "generate.h"
#include "key.h"

#include "lib/stringinfo.h"

typedef struct PpColumn
{
	const char *name; /* quoted */
	AttrNumber attnum;
	Oid type;                  /* below all domains … */
	const char *assigned_type; /* … and as it is declared; NULL: an assignment changes no value */
	List *sources;             /* PpSource; NIL: the entry's ID */
	const char *merge;
	bool empty_is_null;
	bool is_key;
	char *value;         /* expression for what the event has, NULL when absent */
	char *valid;         /* condition: it can be converted; NULL: always */
	char *default_value; /* expression, or NULL */
	bool default_varies; /* it is another one for each row */
} PpColumn;

extern List *pp_generate_columns(const PpPipeline *p, Relation rel, List *key);

/* generate_conflict.c */
extern char *pp_generate_inserted(const PpColumn *col);
extern char *pp_generate_equal(Oid type);
extern char *pp_generate_newer(const PpExtension *ext, const PpPipeline *p, List *columns);
extern void pp_generate_conflict(StringInfo sql, const PpPipeline *p, List *columns,
								 const char *newer, bool nulls_alike);

#endif /* PP_GENERATE_INTERNAL_H */
