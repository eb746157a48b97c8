/*
 * postpipe.c
 *		_PG_init(): settings, shared memory, hooks, the launcher.  Nothing else.
 */
#include "postpipe.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"

#include "guc.h"
#include "shmem.h"
#include "utility_hook.h"

PG_MODULE_MAGIC;

void _PG_init(void);

static void
register_launcher(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, PP_EXTENSION, sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "postpipe_launcher_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "postpipe launcher", sizeof(worker.bgw_name));
	strlcpy(worker.bgw_type, "postpipe launcher", sizeof(worker.bgw_type));
	RegisterBackgroundWorker(&worker);
}

PGDLLEXPORT void
_PG_init(void)
{
	/*
	 * Loaded into a single backend there is no shared memory and no launcher; the functions say so.
	 * During pg_upgrade nothing must connect anywhere.
	 */
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;
	pp_guc_define();
	pp_shmem_init();
	pp_utility_hook_install();
	register_launcher();
}
