/*
 * generate_internal.h
 *		Shared by generate.c and generate_columns.c.
 */
#ifndef PP_GENERATE_INTERNAL_H
#define PP_GENERATE_INTERNAL_H

#include "generate.h"
#include "key.h"

typedef struct PpColumn
{
	const char *name; /* quoted */
	AttrNumber attnum;
	List *sources; /* PpSource; NIL: the entry's ID */
	const char *merge;
	bool empty_is_null;
	bool is_key;
	char *value;         /* expression for what the event has, NULL when absent */
	char *valid;         /* condition: it can be converted; NULL: always */
	char *default_value; /* expression, or NULL */
	bool default_varies; /* it is another one for each row */
} PpColumn;

extern List *pp_generate_columns(const PpPipeline *p, Relation rel, List *key);

#endif /* PP_GENERATE_INTERNAL_H */
