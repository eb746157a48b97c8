/*
 * statement.h
 *		A pipeline's statement: prepared, and run over a set of entries.
 */
#ifndef PP_STATEMENT_H
#define PP_STATEMENT_H

#include "batch.h"
#include "pipeline.h"

typedef struct PpStatement PpStatement;

/* What is known of the rows that a run will write. */
typedef enum PpForm
{
	PP_FORM_WHOLE = 0, /* nothing: the statement as it is shown */
	PP_FORM_PLAIN,     /* all are new: a plain insert */
	PP_FORM_OLDER,     /* their keys were written by later entries: they fill what is NULL */
	PP_FORM_CHECK      /* writes nothing: see pp_statement_find_bad() */
} PpForm;

extern PpStatement *pp_statement_create(MemoryContext cxt, const PpExtension *ext,
										PpPipeline *pipeline);
extern void pp_statement_destroy(PpStatement *s);
extern void pp_statement_prepare(PpStatement *s);
extern List *pp_statement_key_fields(const PpStatement *s);
extern Oid pp_statement_role(const PpStatement *s);
extern const char *pp_statement_sql(const PpStatement *s);
extern bool pp_statement_timed_out(const PpStatement *s);
extern bool pp_statement_failed_on_entries(PpStatement *s);
extern bool pp_statement_has_plain(const PpStatement *s);
extern bool pp_statement_has_older(const PpStatement *s);
extern bool pp_statement_can_check(const PpStatement *s);
extern void pp_statement_find_bad(PpStatement *s, PpEntry **entries, int n, bool *bad);
extern int pp_statement_run(PpStatement *s, PpEntry **entries, int n, PpForm form);

#endif /* PP_STATEMENT_H */
