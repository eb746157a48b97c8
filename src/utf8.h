/*
 * utf8.h
 *		Is it UTF-8?
 */
#ifndef PP_UTF8_H
#define PP_UTF8_H

#include "postpipe.h"

extern bool pp_utf8_is_valid(const char *p, size_t len);

#endif /* PP_UTF8_H */
