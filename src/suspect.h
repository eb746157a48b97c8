/*
 * suspect.h
 *		Entries that may have crashed the process.
 */
#ifndef PP_SUSPECT_H
#define PP_SUSPECT_H

#include "batch.h"

extern void pp_suspect_note(PpEntry **entries, int n);
extern void pp_suspect_note_commit(const PpBatch *batch);
extern int pp_suspect_part_end(const PpBatch *batch, int first);
extern bool pp_suspect_condemn(MemoryContext cxt, PpEntry *entry);

#endif /* PP_SUSPECT_H */
