/*
 * launcher.c
 *		The launcher: keeps a supervisor in each database of postpipe.databases.
 *
 * A static worker that the postmaster restarts by itself.  It is connected to no database, only to
 * the shared catalogs, to find databases by name.  It is woken by the exit of a supervisor, by a
 * reload, and by CREATE, DROP and ALTER DATABASE (utility_hook.c); it polls for nothing.
 */
#include "worker.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "child.h"
#include "guc.h"
#include "process.h"
#include "stats.h"

#define STOP_DEADLINE_MS 10000
#define BACKOFF_CAP_MS   60000

/* A database of the list, or one that is on its way out. */
typedef struct Database
{
	char name[NAMEDATALEN];
	Oid oid; /* InvalidOid: does not exist, or no supervisor can live in it */
	bool listed;
	bool complained; /* said so already */
	bool waits;      /* for a free worker slot */
	PpChild supervisor;
} Database;

static Database databases[PP_MAX_DATABASES];
static int num_databases;

static Database *
find_database(const char *name)
{
	for (int i = 0; i < num_databases; i++)
		if (strcmp(databases[i].name, name) == 0)
			return &databases[i];
	return NULL;
}

/* Is it a database that a supervisor can live in?  A template is not: nobody could copy it. */
static Oid
usable_oid(HeapTuple tuple)
{
	Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

	return form->datallowconn && !form->datistemplate && form->datconnlimit != -2 ? form->oid
																				  : InvalidOid;
}

/* Takes the names of the setting and looks their OIDs up. */
static void
read_databases(void)
{
	Relation rel;
	TableScanDesc scan;
	HeapTuple tuple;
	ListCell *lc;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	for (int i = 0; i < num_databases; i++)
	{
		databases[i].listed = false;
		databases[i].oid = InvalidOid;
	}
	foreach (lc, pp_guc_database_list())
	{
		Database *db = find_database(lfirst(lc));

		if (db == NULL && num_databases < PP_MAX_DATABASES)
		{
			db = &databases[num_databases++];
			memset(db, 0, sizeof(*db));
			strlcpy(db->name, lfirst(lc), sizeof(db->name));
			pp_child_init(&db->supervisor, BACKOFF_CAP_MS);
		}
		if (db != NULL)
			db->listed = true;
	}
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Database *db = find_database(NameStr(((Form_pg_database) GETSTRUCT(tuple))->datname));

		if (db != NULL)
			db->oid = usable_oid(tuple);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
}

static void
complain(Database *db)
{
	if (!db->complained)
		ereport(
			LOG,
			(errcode(ERRCODE_UNDEFINED_DATABASE),
			 errmsg("postpipe launcher: database \"%s\" does not exist, is a template or takes no "
					"connections",
					db->name),
			 errhint("Create it, or take it out of postpipe.databases.")));
	db->complained = true;
}

static void
start_supervisor(Database *db)
{
	char *name = psprintf("postpipe supervisor %s", db->name);
	PpProc *proc = pp_proc_reserve(PP_PROC_SUPERVISOR, db->oid, db->name, NULL, 0, 0);

	db->waits = proc == NULL || !pp_child_start(&db->supervisor, proc, "postpipe_supervisor_main",
												name, "postpipe supervisor");
	if (!db->waits)
		return;
	pp_child_wait(&db->supervisor);
	pp_report_state(
		PP_STATE_WAITING, "no_slot",
		"no free worker slot for a supervisor; raise max_worker_processes and restart the "
		"server",
		NULL);
}

/* One database: what should be against what is. Returns when to look again, in ms, or -1. */
static long
reconcile(Database *db)
{
	PpChild *child = &db->supervisor;
	bool aside = OidIsValid(db->oid) && pp_step_aside_wanted(db->oid);
	bool wanted = db->listed && OidIsValid(db->oid) && !aside;

	if (db->listed && !OidIsValid(db->oid))
		complain(db);
	else
		db->complained = false;
	if (pp_child_look(child))
	{
		if (wanted && child->proc->dboid == db->oid)
			return child->proc->pid == 0 ? 1000 : -1;
		pp_child_stop(child, STOP_DEADLINE_MS);
		return 100;
	}
	/* Those that an earlier launcher or supervisor left have been asked to stop: see detach(). */
	if (OidIsValid(db->oid) && pp_proc_count(db->oid) > 0)
	{
		pp_proc_enforce_stop(db->oid, STOP_DEADLINE_MS);
		return 100;
	}
	db->waits &= wanted;
	if (!wanted)
		return aside ? 500 : -1;
	if (pp_child_due_ms(child) <= 0)
		start_supervisor(db);
	return child->proc != NULL ? 1000 : Max(pp_child_due_ms(child), 10);
}

/* Forgets databases that are neither listed nor running. */
static void
forget_unlisted(void)
{
	int n = 0;

	for (int i = 0; i < num_databases; i++)
		if (databases[i].listed || databases[i].supervisor.proc != NULL)
			databases[n++] = databases[i];
	num_databases = n;
}

/* The main function. The postmaster starts it when recovery has ended: never on a standby. */
void
postpipe_launcher_main(Datum main_arg)
{
	MemoryContext cxt =
		AllocSetContextCreate(TopMemoryContext, "postpipe launcher turn", ALLOCSET_DEFAULT_SIZES);

	if (!pp_process_start(main_arg))
		proc_exit(1);
	for (;;)
	{
		long next = -1;
		bool waits = false;

		MemoryContextSwitchTo(cxt);
		MemoryContextReset(cxt);
		(void) pp_process_reload();
		read_databases();
		MemoryContextSwitchTo(cxt);
		for (int i = 0; i < num_databases; i++)
		{
			long due = reconcile(&databases[i]);

			if (due >= 0)
				next = next < 0 ? due : Min(next, due);
			waits |= databases[i].waits;
		}
		if (!waits)
			pp_report_state(PP_STATE_RUNNING, "", "", NULL);
		forget_unlisted();
		pp_process_activity(false, "watching the supervisors");
		pp_process_sleep(next, PP_WAIT_LAUNCHER_MAIN);
	}
}
