/*
 * errors.h
 *		Whose fault an SQL error is.
 */
#ifndef PP_ERRORS_H
#define PP_ERRORS_H

#include "batch.h"

typedef enum PpFault
{
	PP_FAULT_MOMENT,  /* the moment's: the whole batch again, nothing counted against the entries */
	PP_FAULT_OUTSIDE, /* the same, at first: what is out of reach may be what one entry names */
	PP_FAULT_PIPELINE, /* the pipeline's, if an empty batch or every entry fails alike */
	PP_FAULT_ENTRY,    /* an entry's, once it is found */
	PP_FAULT_UNKNOWN   /* of a batch: not known yet; of a lone entry: the entry's */
} PpFault;

extern PpFault pp_fault_of(const PpEntryError *error);

#endif /* PP_ERRORS_H */
