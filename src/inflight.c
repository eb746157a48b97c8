/*
 * inflight.c
 *		What a worker is applying, kept where it outlives a crash of the process.
 *
 * An entry whose application crashes the process takes the whole server with it, and again when it
 * is delivered again.  To find it, each worker has a small file in the data directory that names
 * the entries whose transaction is under way.  Shared memory would not do: a crash restart clears
 * it.  The file is written before the statement runs, and again when the transaction has ended.  A
 * process that starts and finds entries named there knows that the one before it died of them, or
 * was killed: they are suspects, to be run one at a time (suspect.c), until all of them are settled.
 *
 * Nothing is synced: the file has to survive the process, not the machine.  It is written with
 * pwrite(), half a microsecond twice a batch, and not mapped: a store into a mapped page raises
 * SIGBUS when the disk is full or broken, and that would be a crash of the whole server.  For the
 * same reason nothing here is an error: without the file the worker works as well, and only cannot
 * tell after a crash which entry it was.
 *
 * Not every death is a crash of ours.  A process that exits (FATAL, terminated) clears the file.
 * When another process of the server has crashed, and at an immediate stop, the postmaster sends
 * SIGQUIT: the handler notes that no entry is to blame.
 *
 * No locks: a file belongs to one worker.  The supervisor removes the files of a pipeline that is
 * dropped, when its workers have gone.
 */
#include "inflight.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/parallel.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "port/pg_iovec.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"

#include "postpipe.h"

#define DIRECTORY "postpipe"
#define MAGIC     0x70706966
#define LAYOUT    1

/* IDs from first to last; last is 0-0: none. */
typedef struct Range
{
	PpId first;
	PpId last;
} Range;

/* The file. Suspects and the lone entry are what earlier crashes have told. */
typedef struct Note
{
	uint32 magic;
	uint32 layout;
	uint64 definition; /* version of the pipeline's definition */
	Range applying;
	int32 n;          /* entries in it that are applied; 0: no transaction is under way */
	int32 source;     /* where they come from */
	int32 exonerated; /* written by the signal handler: what is applied is not to blame */
	int32 lone_alone; /* crashes while the lone entry was applied alone */
	int32 lone_all;   /* … and those before, when others were applied with it */
	int32 in_a_row;   /* crashes since a transaction with entries was last committed */
	PpId lone;
	Range suspects[PP_INFLIGHT_SOURCES];
} Note;

static Note note;
static int fd = -1;
static PpInflightSource current_source = PP_INFLIGHT_STREAM;
static char path[MAXPGPATH];

static void
make_path(char *dst, Oid dboid, const char *pipeline, int worker)
{
	/* A pipeline's name has letters, digits and underscores only, checked by the table. */
	snprintf(dst, MAXPGPATH, DIRECTORY "/%u.%s.%d", dboid, pipeline, worker);
}

/* Says once what is wrong with the file, and goes on without it. */
static void
do_without(const char *what)
{
	ereport(LOG, (errcode_for_file_access(), errmsg("could not %s file \"%s\": %m", what, path),
				  errdetail("Without it an entry that crashes the server cannot be found.")));
	if (fd < 0)
		return;
	/* What it says now would be taken for what the next crash was about. */
	(void) unlink(path);
	(void) close(fd);
	ReleaseExternalFD();
	fd = -1;
}

static void
save(void)
{
	if (fd < 0)
		return;
	errno = 0;
	if (pg_pwrite(fd, &note, sizeof(note), 0) == sizeof(note))
		return;
	if (errno == 0)
		errno = ENOSPC;
	do_without("write");
}

static bool
in_range(const Range *range, PpId id)
{
	return !pp_id_is_zero(range->last) && pp_id_compare(id, range->first) >= 0 &&
		   pp_id_compare(id, range->last) <= 0;
}

static bool
is_sound(const Range *range)
{
	return pp_id_compare(range->first, range->last) <= 0;
}

/* Reads what the process before has left; anything unexpected counts as nothing. */
static void
load(void)
{
	char buf[sizeof(Note) + 1] = {0};
	bool sound = pg_pread(fd, buf, sizeof(buf), 0) == sizeof(Note);

	memcpy(&note, buf, sizeof(Note));
	sound = sound && note.magic == MAGIC && note.layout == LAYOUT && note.n >= 0 &&
			is_sound(&note.applying) && note.source >= 0 && note.source < PP_INFLIGHT_SOURCES &&
			note.lone_alone >= 0 && note.lone_all >= note.lone_alone && note.in_a_row >= 0;
	for (int i = 0; sound && i < PP_INFLIGHT_SOURCES; i++)
		sound = is_sound(&note.suspects[i]);
	if (sound)
		return;
	memset(&note, 0, sizeof(note));
	if (ftruncate(fd, 0) != 0)
		do_without("truncate");
}

/* Draws the conclusions from a transaction that the process before us did not end. */
static void
learn(const char *pipeline, int worker)
{
	Range *suspects = &note.suspects[note.source];
	char first[PP_ID_LEN];
	char last[PP_ID_LEN];

	note.in_a_row++;
	pp_id_print(note.applying.first, first);
	pp_id_print(note.applying.last, last);
	if (note.n > 1)
		ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: the process before died while "
							 "it applied %d entries from %s to %s",
							 pipeline, worker, note.n, first, last),
					  errdetail("They are applied one at a time now.")));
	else
	{
		bool again = note.lone_alone > 0 && pp_id_compare(note.lone, note.applying.first) == 0;

		if (!again)
		{
			note.lone = note.applying.first;
			note.lone_alone = 0;
			note.lone_all = in_range(suspects, note.lone) ? 1 : 0;
		}
		note.lone_alone++;
		note.lone_all++;
		ereport(LOG, (errmsg("postpipe pipeline \"%s\", worker %d: the process before died while "
							 "it applied entry %s alone",
							 pipeline, worker, first)));
	}
	if (pp_id_is_zero(suspects->last))
		*suspects = note.applying;
	if (pp_id_compare(note.applying.first, suspects->first) < 0)
		suspects->first = note.applying.first;
	if (pp_id_compare(note.applying.last, suspects->last) > 0)
		suspects->last = note.applying.last;
}

/*
 * SIGQUIT.  Unless parallel workers of ours are at work: the crash may be one of theirs, over what
 * we apply, so that is run one at a time as after a crash of our own.
 */
static void
exonerate(SIGNAL_ARGS)
{
	static const int32 yes = 1;

	if (fd >= 0 && !ParallelContextActive() &&
		pg_pwrite(fd, &yes, sizeof(yes), offsetof(Note, exonerated)) < 0)
	{
		/* Nothing can be done about it here. */
	}
	SignalHandlerForCrashExit(postgres_signal_arg);
}

/* The process ends by itself. With another exit code the postmaster takes it for a crash as well. */
static void
clear_at_exit(int code, Datum arg)
{
	if (code == 0 || code == 1)
		pp_inflight_clear();
}

/*
 * pp_inflight_open
 *		Opens the file of this worker, once, at its start, and reads what the process before it has
 *		left.  With another version of the definition an entry that crashed the process gets its
 *		chances anew, because somebody may have mended what it ran into.
 */
void
pp_inflight_open(const char *pipeline, int worker, uint64 definition)
{
	make_path(path, MyDatabaseId, pipeline, worker);
	if (MakePGDirectory(DIRECTORY) != 0 && errno != EEXIST)
	{
		do_without("create");
		return;
	}
	if (!AcquireExternalFD())
	{
		errno = EMFILE;
		do_without("open");
		return;
	}
	fd = BasicOpenFile(path, O_RDWR | O_CREAT | PG_BINARY);
	if (fd < 0)
	{
		ReleaseExternalFD();
		do_without("open");
		return;
	}
	load();
	if (note.n > 0 && !note.exonerated)
		learn(pipeline, worker);
	if (note.definition != definition)
		note.lone_alone = note.lone_all = note.in_a_row = 0;
	note.magic = MAGIC;
	note.layout = LAYOUT;
	note.definition = definition;
	note.n = 0;
	note.exonerated = 0;
	save();
	on_proc_exit(clear_at_exit, 0);
	pqsignal(SIGQUIT, exonerate);
}

/* Removes the files of a pipeline that is dropped and has no workers any more. */
void
pp_inflight_remove(Oid dboid, const char *pipeline)
{
	char file[MAXPGPATH];

	for (int worker = 1; worker <= PP_MAX_WORKERS_PER_PIPELINE; worker++)
	{
		make_path(file, dboid, pipeline, worker);
		(void) unlink(file);
	}
}

/* What is applied and asked about from now on comes from there. At first: from the stream. */
void
pp_inflight_source(PpInflightSource source)
{
	current_source = source;
}

/* Notes that n entries, from first to last, are being applied. Outside a worker: does nothing. */
void
pp_inflight_set(PpId first, PpId last, int n)
{
	if (fd < 0 || (note.n == n && note.source == current_source &&
				   pp_id_compare(note.applying.first, first) == 0 &&
				   pp_id_compare(note.applying.last, last) == 0))
		return;
	note.applying.first = first;
	note.applying.last = last;
	note.n = n;
	note.source = current_source;
	save();
}

/* The transaction was rolled back, and nothing has crashed. */
void
pp_inflight_clear(void)
{
	if (note.n == 0)
		return;
	note.n = 0;
	save();
}

/* The transaction is committed. */
void
pp_inflight_committed(void)
{
	if (note.n > 0)
		note.in_a_row = 0;
	pp_inflight_clear();
}

/* Crashes in a row, with nothing applied between. */
int
pp_inflight_crashes_in_a_row(void)
{
	return note.in_a_row;
}

/* Is there an entry that has to be applied alone? */
bool
pp_inflight_suspects_exist(void)
{
	return fd >= 0 && !pp_id_is_zero(note.suspects[current_source].last);
}

/* Was this entry among those that were applied when the process died? */
bool
pp_inflight_is_suspect(PpId id)
{
	return fd >= 0 && in_range(&note.suspects[current_source], id);
}

/*
 * pp_inflight_crashes
 *		How often the process died while it applied this suspect; *alone: when it was alone.
 */
int
pp_inflight_crashes(PpId id, int *alone)
{
	bool known = pp_inflight_is_suspect(id) && pp_id_compare(note.lone, id) == 0;

	*alone = known ? note.lone_alone : 0;
	return known ? note.lone_all : 1;
}

/* All suspects of this source are settled, and that is durable: nothing is to be remembered. */
void
pp_inflight_suspects_settled(void)
{
	if (!pp_inflight_suspects_exist())
		return;
	if (in_range(&note.suspects[current_source], note.lone))
		note.lone_alone = note.lone_all = 0;
	memset(&note.suspects[current_source], 0, sizeof(Range));
	save();
}
