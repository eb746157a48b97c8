"""The Python contenders: redis-py and asyncpg, in batches or one entry at a time.

Usage: consumer.py REDIS_PORT STREAM GROUP TABLE BATCH LIMIT [one]

Takes LIMIT entries of the stream, BATCH at a time, and ends.

In batches: one INSERT ... SELECT FROM unnest(...) ON CONFLICT DO UPDATE for all entries of a read, and one XACK for
all of them after the commit.  With "one": an upsert and an XACK for each entry, a transaction each, as the worker does
that is replaced.  Both are without its faults: an error ends the program, nothing is acknowledged that is not committed.

The merge rules are those of the pipeline "posts", and as in client.c no key comes twice in one batch.  The last line of
the output is a JSON object with what was measured; the seconds begin when it is connected and ready.
"""

import asyncio
import json
import os
import resource
import sys
import time

import asyncpg
import redis.asyncio as redis

# In the order of the parameters of the statements: names of the field, type of the value.
FIELDS = (
    (("post_id", "id"), "text"),
    (("channel_id",), "text"),
    (("telegram_message_id", "tg_message_id"), "bigint"),
    (("text", "content"), "text"),
    (("media_urls", "urls"), "jsonb"),
    (("posted_at",), "text"),
    (("occurred_at", "created_at"), "text"),
    (("telegram_post_url", "url"), "text"),
    (("has_media",), "boolean"),
    (("is_edited",), "boolean"),
    (("views_count",), "bigint"),
    (("forwards_count",), "bigint"),
    (("reactions_count",), "bigint"),
)
COLUMNS = (
    "entry_id, id, channel_id, telegram_message_id, content, media_urls, posted_at, created_at, telegram_post_url,"
    " has_media, is_edited, views_count, forwards_count, reactions_count"
)
MERGE = """
    ON CONFLICT (channel_id, telegram_message_id) DO UPDATE SET
    entry_id = excluded.entry_id, content = excluded.content,
    media_urls = coalesce(excluded.media_urls, t.media_urls),
    posted_at = coalesce(excluded.posted_at, t.posted_at),
    telegram_post_url = coalesce(excluded.telegram_post_url, t.telegram_post_url),
    has_media = coalesce(excluded.has_media, t.has_media),
    is_edited = coalesce(excluded.is_edited, t.is_edited),
    views_count = greatest(excluded.views_count, t.views_count),
    forwards_count = greatest(excluded.forwards_count, t.forwards_count),
    reactions_count = greatest(excluded.reactions_count, t.reactions_count)"""
SELECTED = """
    SELECT e.c0, e.c1, e.c2, e.c3, e.c4, e.c5, e.c6::timestamptz, coalesce(e.c7::timestamptz, now()), e.c8, e.c9, e.c10,
    coalesce(e.c11, 0), coalesce(e.c12, 0), coalesce(e.c13, 0)"""
TRUE = {"true", "1", "yes", "t", "y"}
CONVERT = {
    "text": str,
    "jsonb": str,
    "bigint": int,
    "boolean": lambda value: value.lower() in TRUE,
}


def row_of(entry_id, fields):
    """The parameters of one entry; what is empty is NULL."""
    row = [entry_id]
    for names, kind in FIELDS:
        value = next((fields[name] for name in names if name in fields), "")
        row.append(CONVERT[kind](value) if value else None)
    return row


def upsert_batch(table):
    types = ["text"] + [kind for _, kind in FIELDS]
    arrays = ", ".join(f"${i}::{kind}[]" for i, kind in enumerate(types, 1))
    names = ", ".join(f"c{i}" for i in range(len(types)))
    return f"INSERT INTO {table} AS t ({COLUMNS}) {SELECTED} FROM unnest({arrays}) AS e ({names}) {MERGE}"


def upsert_one(table):
    types = ["text"] + [kind for _, kind in FIELDS]
    values = ", ".join(f"${i}::{kind}" for i, kind in enumerate(types, 1))
    names = ", ".join(f"c{i}" for i in range(len(types)))
    return f"INSERT INTO {table} AS t ({COLUMNS}) {SELECTED} FROM (VALUES ({values})) AS e ({names}) {MERGE}"


async def consume(port, stream, group, table, batch, limit, one):
    server = redis.Redis(port=int(port), decode_responses=True)
    # Without jit = off, what asyncpg asks about types first takes seconds.
    settings = {"application_name": "bench", "timezone": "UTC", "jit": "off"}
    database = await asyncpg.connect(database="postgres", server_settings=settings)
    statement = await database.prepare(upsert_one(table) if one else upsert_batch(table))
    done = 0
    start = time.monotonic()

    while done < limit:
        reply = await server.xreadgroup(group, "bench", {stream: ">"}, count=min(batch, limit - done))
        if not reply:
            break
        entries = reply[0][1]
        if one:
            for entry_id, fields in entries:
                await statement.fetch(*row_of(entry_id, fields))
                await server.xack(stream, group, entry_id)
        else:
            await statement.fetch(*zip(*(row_of(entry_id, fields) for entry_id, fields in entries)))
            await server.xack(stream, group, *(entry_id for entry_id, _ in entries))
        done += len(entries)

    seconds = time.monotonic() - start
    backend_cpu = process_cpu_seconds(database.get_server_pid())
    await database.close()
    await server.close()
    return done, seconds, backend_cpu


def process_cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    if len(sys.argv) not in (7, 8):
        sys.exit(__doc__)
    port, stream, group, table, batch, limit = sys.argv[1:7]
    done, seconds, backend_cpu = asyncio.run(
        consume(port, stream, group, table, int(batch), int(limit), sys.argv[7:] == ["one"])
    )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "entries": done,
                "seconds": seconds,
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "backend_cpu_seconds": backend_cpu,
            }
        )
    )


main()
