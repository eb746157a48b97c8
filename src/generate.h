/*
 * generate.h
 *		The statement of a pipeline that has a target.
 */
#ifndef PP_GENERATE_H
#define PP_GENERATE_H

#include "pipeline.h"

/* The forms of a statement, by what is known of the rows that a run will write. */
typedef enum PpForm
{
	PP_FORM_WHOLE = 0, /* nothing: the statement as it is shown */
	PP_FORM_PLAIN,     /* all are new: a plain insert */
	PP_FORM_OLDER,     /* their keys were written by later entries: they fill what is NULL */
	PP_FORM_CHECK,     /* writes nothing: the positions of entries whose values fit no type */
	PP_FORM_DELETE,    /* removes the rows of these keys; only where nothing else happens then */
	PP_FORM_SHOW,      /* as the whole one, and returns the rows that it wrote */
	PP_FORMS
} PpForm;

typedef struct PpGenerated
{
	char *forms[PP_FORMS]; /* NULL: there is none */
	List *key;             /* PpKeyColumn; NIL: a row cannot conflict with another */
	bool leaves_conflicts; /* the whole form returns nothing of an entry that met a row */
} PpGenerated;

extern PpGenerated *pp_generate(const PpExtension *ext, const PpPipeline *p, Relation target);

#endif /* PP_GENERATE_H */
