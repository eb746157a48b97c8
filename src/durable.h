/*
 * durable.h
 *		The barrier between COMMIT and XACK.
 */
#ifndef PP_DURABLE_H
#define PP_DURABLE_H

#include "postpipe.h"

#include "access/xlogdefs.h"

extern XLogRecPtr pp_durable_commit(void);
extern bool pp_durable_wait(XLogRecPtr lsn);
extern bool pp_durable_is_reached(XLogRecPtr lsn, int level);

#endif /* PP_DURABLE_H */
