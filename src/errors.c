/*
 * errors.c
 *		SQLSTATE -> whose fault it is.
 *
 * The class alone never condemns an entry: a batch is split first, and only what fails while
 * others pass is dead-lettered (split.c).  The class decides what is not even split, or not at once.
 */
#include "errors.h"

/*
 * pp_fault_of
 *		The first guess for an error, by its SQLSTATE.
 */
PpFault
pp_fault_of(const PpEntryError *error)
{
	int sqlstate = error->sqlstate;

	if (error->moment)
		return PP_FAULT_MOMENT;
	switch (sqlstate)
	{
		case ERRCODE_QUERY_CANCELED:
		case ERRCODE_OUT_OF_MEMORY:
		case ERRCODE_INTERNAL_ERROR:
			return PP_FAULT_UNKNOWN;
		case ERRCODE_STATEMENT_TOO_COMPLEX: /* class 54: what is too large is the entry */
			return PP_FAULT_ENTRY;
		case ERRCODE_LOCK_NOT_AVAILABLE:
			return PP_FAULT_MOMENT;
		case ERRCODE_READ_ONLY_SQL_TRANSACTION:
			return PP_FAULT_PIPELINE;
		default:
			break;
	}
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:   /* 40 */
		case ERRCODE_INSUFFICIENT_RESOURCES: /* 53 */
		case ERRCODE_OPERATOR_INTERVENTION:  /* 57 */
			return PP_FAULT_MOMENT;
		case ERRCODE_CONNECTION_EXCEPTION: /* 08 */
		case ERRCODE_SYSTEM_ERROR:         /* 58 */
			return PP_FAULT_OUTSIDE;
		case ERRCODE_SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION: /* 42 */
		case ERRCODE_INVALID_SCHEMA_NAME:                   /* 3F */
		case ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION:   /* 28 */
		case ERRCODE_FEATURE_NOT_SUPPORTED:                 /* 0A */
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:      /* 55 */
			return PP_FAULT_PIPELINE;
		default:
			return PP_FAULT_ENTRY;
	}
}
