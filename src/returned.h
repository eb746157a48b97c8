/*
 * returned.h
 *		What a pipeline's statement returns.
 */
#ifndef PP_RETURNED_H
#define PP_RETURNED_H

#include "postpipe.h"

#include "lib/stringinfo.h"
#include "tcop/dest.h"

/* A DestReceiver; what is wanted of the rows is set after pp_returned_init(). */
typedef struct PpReturned
{
	DestReceiver pub;
	bool any; /* it is a statement that returns rows */
	int num_rows;
	int inserted_column; /* of a boolean "inserted"; 0: there is none */
	int not_inserted;    /* rows that say so */
	bool *bad;           /* NULL, or the first column is the position of an entry, from 1 */
	StringInfo rows;     /* NULL, or all rows go there, as the elements of a JSON array */
} PpReturned;

extern void pp_returned_init(PpReturned *returned);

#endif /* PP_RETURNED_H */
