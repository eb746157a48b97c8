/*
 * event_internal.h
 *		Shared by what makes an event of an entry, and values of its fields: event.c, event_json.c,
 *		batch_field.c.
 */
#ifndef PP_EVENT_INTERNAL_H
#define PP_EVENT_INTERNAL_H

#include "event_object.h"

/* event_json.c */
extern PpObject *pp_json_parse_object(const char *text, size_t len);
extern Jsonb *pp_json_parse_array(const char *text, size_t len);

#endif /* PP_EVENT_INTERNAL_H */
