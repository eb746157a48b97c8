/*
 * batch_field.h
 *		Values of an entry's fields, as a statement asks for them.
 */
#ifndef PP_BATCH_FIELD_H
#define PP_BATCH_FIELD_H

#include "batch.h"
#include "nodes/primnodes.h"

typedef struct PpField PpField;

/* batch_field.c */
extern PpField *pp_field_make(Node *expr, Index relid, bool convert);
extern void pp_field_begin(PpField *field);
extern Node *pp_field_expression(const PpField *field);
extern Datum pp_field_value(PpField *field, const PpEntry *entry, bool *isnull);

/* iso_timestamp.c */
extern bool pp_iso_timestamp(const char *text, TimestampTz *result);

#endif /* PP_BATCH_FIELD_H */
