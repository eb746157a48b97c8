/*
 * news.h
 *		What is worth a line of the server's log.
 */
#ifndef PP_NEWS_H
#define PP_NEWS_H

#include "shmem.h"

extern bool pp_news_state(bool well, const char *code);
extern bool pp_news_overdue(void);
extern bool pp_is_news(const char *what);

#endif /* PP_NEWS_H */
