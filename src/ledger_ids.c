/*
 * ledger_ids.c
 *		The IDs and hashes in a row of the ledger.
 *
 * Encoding: a version byte (1), then for each entry in stream order the milliseconds as a varint
 * difference to the entry before, the sequence as a varint (a difference when the milliseconds are
 * the same), and 8 bytes of hash, most significant first.  A varint has seven bits a byte, the low
 * ones first, the high bit set on all but the last.
 */
#include "ledger_ids.h"

#include "port/pg_bswap.h"

#include "compat.h"

#define IDS_VERSION     1
#define MAX_ENTRY_BYTES (10 + 10 + 8)

static unsigned char *
put_varint(unsigned char *p, uint64 value)
{
	for (; value >= 0x80; value >>= 7)
		*p++ = (unsigned char) (value | 0x80);
	*p++ = (unsigned char) value;
	return p;
}

static void
damaged(void)
{
	ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("ledger row is damaged")));
}

static uint64
get_varint(PpIdsReader *reader)
{
	uint64 value = 0;

	for (int shift = 0; reader->p < reader->end && shift < 64; shift += 7)
	{
		value |= (uint64) (*reader->p & 0x7f) << shift;
		if ((*reader->p++ & 0x80) == 0)
			return value;
	}
	damaged();
	return 0;
}

/* The stored form of IDs in stream order, in the current memory context. */
bytea *
pp_ids_encode(const PpIdHash *ids, int n)
{
	bytea *result = palloc(VARHDRSZ + 1 + (Size) n * MAX_ENTRY_BYTES);
	unsigned char *p = (unsigned char *) VARDATA(result);
	PpId last = {0, 0};

	*p++ = IDS_VERSION;
	for (int i = 0; i < n; i++)
	{
		PpId id = ids[i].id;
		uint64 hash = pg_hton64(ids[i].hash);

		p = put_varint(p, id.ms - last.ms);
		p = put_varint(p, id.ms == last.ms ? id.seq - last.seq : id.seq);
		memcpy(p, &hash, sizeof(hash));
		p += sizeof(hash);
		last = id;
	}
	SET_VARSIZE(result, (char *) p - (char *) result);
	return result;
}

/* Begins to read a value that is not toasted. Throws when it is not one of ours. */
void
pp_ids_begin(PpIdsReader *reader, const bytea *ids)
{
	reader->p = (const unsigned char *) VARDATA_ANY(ids);
	reader->end = reader->p + VARSIZE_ANY_EXHDR(ids);
	reader->last = (PpId){0, 0};
	if (reader->p == reader->end || *reader->p++ != IDS_VERSION)
		damaged();
}

/* The next ID and hash; false: that was all. Throws when the value is damaged. */
bool
pp_ids_next(PpIdsReader *reader, PpIdHash *next)
{
	uint64 ms;
	uint64 seq;

	if (reader->p == reader->end)
		return false;
	ms = get_varint(reader);
	seq = get_varint(reader);
	if (reader->end - reader->p < (ptrdiff_t) sizeof(next->hash))
		damaged();
	memcpy(&next->hash, reader->p, sizeof(next->hash));
	next->hash = pg_ntoh64(next->hash);
	reader->p += sizeof(next->hash);
	reader->last.seq = ms == 0 ? reader->last.seq + seq : seq;
	reader->last.ms += ms;
	next->id = reader->last;
	return true;
}
