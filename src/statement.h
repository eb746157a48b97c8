/*
 * statement.h
 *		A pipeline's statement: prepared, and run over a set of entries.
 */
#ifndef PP_STATEMENT_H
#define PP_STATEMENT_H

#include "batch.h"
#include "generate.h"

#include "lib/stringinfo.h"

typedef struct PpStatement PpStatement;

extern PpStatement *pp_statement_create(MemoryContext cxt, const PpExtension *ext,
										PpPipeline *pipeline);
extern void pp_statement_destroy(PpStatement *s);
extern void pp_statement_prepare(PpStatement *s);
extern void pp_statement_note_key(const PpStatement *s);
extern List *pp_statement_key(const PpStatement *s);
extern Oid pp_statement_role(const PpStatement *s);
extern const char *pp_statement_sql(const PpStatement *s);
extern bool pp_statement_has(const PpStatement *s, PpForm form);

/* statement_run.c */
extern bool pp_statement_failed(PpStatement *s);
extern bool pp_statement_failed_on_entries(PpStatement *s);
extern void pp_statement_find_bad(PpStatement *s, PpEntry **entries, int n, bool *bad);
extern bool pp_statement_show(PpStatement *s, PpEntry *entry, StringInfo rows);
extern int pp_statement_run(PpStatement *s, PpEntry **entries, int n, PpForm form);

#endif /* PP_STATEMENT_H */
