/*
 * statement_internal.h
 *		Shared by statement.c and statement_run.c.
 */
#ifndef PP_STATEMENT_INTERNAL_H
#define PP_STATEMENT_INTERNAL_H

#include "statement.h"
#include "run_plan.h"
#include "steady.h"

#include "access/tupdesc.h"

#define PP_PLANS (2 * PP_FORMS) /* for a few and for many entries, of each form */

struct PpStatement
{
	MemoryContext cxt;
	MemoryContext run_cxt; /* for one run */
	const PpExtension *ext;
	PpPipeline *pipeline;
	MemoryContext made_cxt; /* holds … */
	PpGenerated *made;      /* … what is run; NULL: not made yet */
	uint64 catalog_changes; /* that it knows of */
	bool bulk;              /* the plain form may be run by bulk_insert.c */
	Oid role;
	char *search_path; /* of what is run */
	Oid target;        /* OID of the target table; InvalidOid with a user's statement */
	TupleDesc desc;    /* of postpipe_batch */
	PpKeptPlan plans[PP_PLANS];
	int own_timeout_ms;  /* 0: none; -1: the setting counts, as it is when a run begins */
	int timeout_ms;      /* of the run that is under way, or was last; 0: none */
	PpSteady started_at; /* of the run that is under way; unset: none is */
	bool over_entries;   /* it has some, and has not ended */
};

/* What was in force before pp_statement_enter(). */
typedef struct PpStatementScope
{
	Oid user;
	int context;
	int nest;
} PpStatementScope;

/* statement.c */
extern bool pp_statement_is_current(const PpStatement *s);

/* statement_run.c */
extern void pp_statement_enter(PpStatementScope *scope, Oid role, const char *search_path);
extern void pp_statement_leave(const PpStatementScope *scope);

#endif /* PP_STATEMENT_INTERNAL_H */
