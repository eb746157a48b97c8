/*
 * worker.h
 *		The main functions of our processes, which the postmaster looks up by name.
 */
#ifndef PP_WORKER_H
#define PP_WORKER_H

#include "postpipe.h"

extern PGDLLEXPORT void postpipe_worker_main(Datum main_arg);
extern PGDLLEXPORT void postpipe_supervisor_main(Datum main_arg);
extern PGDLLEXPORT void postpipe_launcher_main(Datum main_arg);

#endif /* PP_WORKER_H */
