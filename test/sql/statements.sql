-- Generated statements: what is shown in postpipe_pipelines, and what they do. They are run here over a transition table that
-- has the name and the columns of the batch, as a worker runs them over its own.
\set SHOW_CONTEXT never
-- A warning says that this database is not listed in postpipe.databases, or it does not.
SET client_min_messages = error;
CREATE EXTENSION postpipe;
RESET client_min_messages;
\pset format unaligned
SET TimeZone = 'UTC';
SET DateStyle = ISO;

CREATE TABLE batch (id postpipe_id, ord int, stream text, event jsonb, envelope jsonb, added_at timestamptz);
CREATE FUNCTION run_statement() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE (SELECT statement FROM postpipe_pipelines WHERE stream = (SELECT stream FROM postpipe_batch LIMIT 1));
    RETURN NULL;
END $$;
CREATE TRIGGER run AFTER INSERT ON batch REFERENCING NEW TABLE AS postpipe_batch FOR EACH STATEMENT EXECUTE FUNCTION run_statement();
CREATE SEQUENCE entry;
CREATE PROCEDURE feed(pipeline text, VARIADIC events jsonb[]) LANGUAGE sql AS $$
    INSERT INTO batch SELECT (1700000000000 + nextval('entry') || '-0')::postpipe_id, ord, 'stream:' || pipeline, event, NULL, now()
    FROM unnest(events) WITH ORDINALITY u (event, ord) ORDER BY ord
$$;
CREATE FUNCTION make(pipeline text, target text, on_conflict text DEFAULT 'update', newer_by text DEFAULT NULL, key text[] DEFAULT NULL, columns jsonb DEFAULT NULL)
RETURNS text LANGUAGE sql AS $$
    SELECT postpipe_create_pipeline(pipeline, 'stream:' || pipeline, target => target, on_conflict => on_conflict, newer_by => newer_by,
        key => key, columns => columns, enabled => false)
$$;

-- plain columns of many types
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE types (id bigint PRIMARY KEY, t text, v varchar(5), c char(3), n numeric(10,2), f double precision, b boolean, d date,
    ts timestamp, tz timestamptz, i interval, u uuid, j json, jb jsonb, m mood, x bytea, r int4range, "Quoted Name" text, "it's" int);
SELECT make('types', 'types');
SELECT postpipe_create_pipeline('again', 'stream:again', target => 'types', enabled => false) = statement AS shown_as_returned
FROM postpipe_pipelines WHERE pipeline = 'types';
CALL feed('types',
    '{"id": 1, "t": "text", "v": "abc", "c": "x", "n": "1.505", "f": 1e3, "b": true, "d": "2026-11-23", "ts": "2026-11-23T01:02:03", "tz": "2026-11-23T01:02:03", "i": "1 day",
      "u": "00000000-0000-0000-0000-000000000001", "j": {"a": [1]}, "jb": {"a": [1]}, "m": "happy", "x": "\\x00ff", "r": "[1,3)", "Quoted Name": "q", "it''s": "7"}',
    '{"id": "2", "t": "", "v": "", "c": "", "n": "", "f": "", "b": "", "d": "", "ts": "", "tz": "", "i": "", "u": "", "j": "", "jb": "", "m": "", "x": "", "r": "", "Quoted Name": "", "it''s": ""}',
    '{"id": 3, "tz": "2026-11-23T01:02:03+05:00", "b": "yes", "jb": "\"a string\"", "j": 5, "unknown": 1}');
\x on
SELECT * FROM types ORDER BY id;
\x off
-- what does not fit is an error
\set VERBOSITY sqlstate
CALL feed('types', '{"id": 4, "v": "too long"}');
CALL feed('types', '{"id": "x"}');
CALL feed('types', '{"id": 4, "m": "angry"}');
CALL feed('types', '{"t": "no key"}');
\set VERBOSITY default
DROP TABLE types;

-- arrays: as a JSON array, as an array literal, absent, empty
CREATE TABLE arrays (id int PRIMARY KEY, tags text[], numbers int[] NOT NULL DEFAULT '{}', names varchar(3)[]);
SELECT make('arrays', 'arrays');
CALL feed('arrays', '{"id": 1, "tags": ["a", "b, c", null, ""], "numbers": [1, 2], "names": ["x"]}', '{"id": 2, "tags": "{d,e}", "numbers": "{}"}',
    '{"id": 3, "tags": "[\"f\"]", "numbers": "", "names": ""}', '{"id": 4, "tags": [], "numbers": []}', '{"id": 5, "tags": null}');
SELECT * FROM arrays ORDER BY id;
\set VERBOSITY sqlstate
CALL feed('arrays', '{"id": 6, "numbers": ["x"]}');
CALL feed('arrays', '{"id": 6, "tags": {"a": 1}}');
\set VERBOSITY default
DROP TABLE arrays;

-- domains
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN short_text AS text CHECK (length(VALUE) <= 5);
CREATE DOMAIN needed AS text NOT NULL;
CREATE DOMAIN tag_list AS text[];
CREATE TABLE domains (id positive PRIMARY KEY, s short_text, t tag_list, d short_text DEFAULT 'dflt');
SELECT make('domains', 'domains');
CALL feed('domains', '{"id": 1, "s": "abc", "t": ["a", "b"]}', '{"id": 2, "s": "", "d": ""}', '{"id": 3, "d": "given"}');
SELECT * FROM domains ORDER BY id;
\set VERBOSITY sqlstate
CALL feed('domains', '{"id": -1}');
CALL feed('domains', '{"id": 4, "s": "too long"}');
\set VERBOSITY default
DROP TABLE domains;
DROP DOMAIN positive, short_text, needed, tag_list;

-- identity, serial, generated columns and defaults
CREATE TABLE filled (row_no int GENERATED ALWAYS AS IDENTITY, serial_no serial, id text PRIMARY KEY,
    n int DEFAULT 5, twice int GENERATED ALWAYS AS (n * 2) STORED, at timestamptz NOT NULL DEFAULT '2026-01-01', word text NOT NULL DEFAULT 'none');
SELECT make('filled', 'filled');
CALL feed('filled', '{"id": "a"}', '{"id": "b", "n": 7, "row_no": 99, "twice": 1, "at": "2026-02-02", "word": "given", "serial_no": 50}', '{"id": "c", "n": "", "at": "", "word": ""}');
SELECT row_no, serial_no, id, n, twice, at, word FROM filled ORDER BY id;
-- what is absent in an update leaves the row as it is: no default may replace it
CALL feed('filled', '{"id": "b"}', '{"id": "a", "n": 8}');
SELECT row_no, serial_no, id, n, twice, at, word FROM filled ORDER BY id;
DROP TABLE filled;

-- newer_by
CREATE TABLE newer (id int PRIMARY KEY, v text, w text, version int);
SELECT make('newer', 'newer', 'newer', 'version');
CALL feed('newer', '{"id": 1, "v": "five", "version": 5}');
CALL feed('newer', '{"id": 1, "v": "three", "w": "only here", "version": 3}');
SELECT * FROM newer;
CALL feed('newer', '{"id": 1, "v": "five again", "version": 5}');
SELECT * FROM newer;
CALL feed('newer', '{"id": 1, "w": "six", "version": 6}');
SELECT * FROM newer;
CALL feed('newer', '{"id": 1, "v": "no version"}');
SELECT * FROM newer;
DROP TABLE newer;
-- ... and columns with a default: what does not say how new it is, is not newer there, either
CREATE TABLE newer_default (id int PRIMARY KEY, v text, w text DEFAULT 'w', x text DEFAULT 'x', version int);
SELECT make('newer_default', 'newer_default', 'newer', 'version');
CALL feed('newer_default', '{"id": 1, "v": "five", "w": "five", "version": 5}');
CALL feed('newer_default', '{"id": 1, "v": "no version", "w": "no version"}');
SELECT * FROM newer_default;
UPDATE newer_default SET v = NULL, w = NULL, x = NULL;
CALL feed('newer_default', '{"id": 1, "v": "no version", "w": "no version"}');
SELECT * FROM newer_default;
DROP TABLE newer_default;

-- newer_by with the entry's own ID, kept as text: by number, not as text
CREATE TABLE newer_id (id int PRIMARY KEY, v text, entry text);
SELECT make('newer_id', 'newer_id', 'newer', 'entry', NULL, '{"entry": {"fields": ["$id"], "merge": "replace"}, "v": {"merge": "replace"}}');
INSERT INTO batch VALUES ('100-10', 1, 'stream:newer_id', '{"id": 1, "v": "ten"}', NULL, now());
INSERT INTO batch VALUES ('100-9', 1, 'stream:newer_id', '{"id": 1, "v": "nine"}', NULL, now());
SELECT * FROM newer_id;
INSERT INTO batch VALUES ('100-11', 1, 'stream:newer_id', '{"id": 1}', NULL, now());
SELECT * FROM newer_id;
DROP TABLE newer_id;

-- on_conflict nothing and error
CREATE TABLE nothing (id int PRIMARY KEY, v text);
SELECT make('nothing', 'nothing', 'nothing');
CALL feed('nothing', '{"id": 1, "v": "first"}');
CALL feed('nothing', '{"id": 1, "v": "second"}', '{"id": 2, "v": "new"}');
SELECT * FROM nothing ORDER BY id;
DROP TABLE nothing;
CREATE TABLE error (id int PRIMARY KEY, v text);
SELECT make('error', 'error', 'error');
CALL feed('error', '{"id": 1, "v": "first"}');
\set VERBOSITY sqlstate
CALL feed('error', '{"id": 1, "v": "second"}');
\set VERBOSITY default
SELECT * FROM error;
DROP TABLE error;

-- merge rules
CREATE TABLE merged (id int PRIMARY KEY, kept text, replaced text, greatest int, first text);
SELECT make('merged', 'merged', columns => '{"replaced": {"merge": "replace"}, "greatest": {"merge": "greatest"}, "first": {"merge": "first"}}');
CALL feed('merged', '{"id": 1, "kept": "a", "replaced": "a", "greatest": 5, "first": "a"}', '{"id": 2, "first": "b"}');
CALL feed('merged', '{"id": 1, "greatest": 3, "first": "z"}', '{"id": 2, "kept": "b", "replaced": "b", "greatest": 7}');
SELECT * FROM merged ORDER BY id;
DROP TABLE merged;

-- aliases, envelope fields, '' as NULL in text
CREATE TABLE aliased (id int PRIMARY KEY, body text, source text, at timestamptz);
SELECT make('aliased', 'aliased', columns => '{"*": {"empty": "null"}, "id": {"fields": ["post_id", "id"]}, "body": {"fields": ["text", "content"]}, "at": {"fields": ["at", "timestamp"]}}');
CALL feed('aliased', '{"post_id": 1, "id": 9, "text": "", "content": "c"}', '{"id": 2, "text": "t", "content": "c"}');
INSERT INTO batch VALUES ('200-0', 1, 'stream:aliased', '{"id": 3, "content": ""}', '{"source": "bot", "timestamp": "2026-11-23T00:00:00", "id": 7}', now());
SELECT * FROM aliased ORDER BY id;
DROP TABLE aliased;

-- a unique key of several columns that is not the primary key, in another order
CREATE TABLE keyed (id serial PRIMARY KEY, a text, b int, v text, UNIQUE (b, a));
SELECT make('keyed', 'keyed', key => '{a,b}');
CALL feed('keyed', '{"a": "x", "b": 1, "v": "one"}', '{"a": "x", "b": 2, "v": "two"}');
CALL feed('keyed', '{"a": "x", "b": 1, "v": "one again"}');
SELECT a, b, v FROM keyed ORDER BY a, b;
DROP TABLE keyed;

-- only a key; no key
CREATE TABLE only_key (id int PRIMARY KEY);
SELECT make('only_key', 'only_key');
CALL feed('only_key', '{"id": 1}');
CALL feed('only_key', '{"id": 1}', '{"id": 2}');
SELECT * FROM only_key ORDER BY 1;
DROP TABLE only_key;
CREATE TABLE no_key (id int, v text);
SELECT make('no_key', 'no_key');
CALL feed('no_key', '{"id": 1}', '{"id": 1}');
SELECT * FROM no_key;
DROP TABLE no_key;

-- a partitioned table, in a schema whose name needs quotes, with a dropped column
CREATE SCHEMA "Other Schema";
CREATE TABLE "Other Schema"."Parts" (gone int, id int, day date, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
ALTER TABLE "Other Schema"."Parts" DROP COLUMN gone;
CREATE TABLE "Other Schema".parts_1 PARTITION OF "Other Schema"."Parts" FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
CREATE TABLE "Other Schema".parts_2 PARTITION OF "Other Schema"."Parts" FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
SELECT make('parts', '"Other Schema"."Parts"');
SELECT pipeline, target FROM postpipe_pipelines WHERE pipeline = 'parts';
CALL feed('parts', '{"id": 1, "day": "2026-02-01", "v": "a"}', '{"id": 2, "day": "2026-08-01", "v": "b"}');
CALL feed('parts', '{"id": 1, "day": "2026-02-01", "v": "a again"}');
SELECT tableoid::regclass, id, day, v FROM "Other Schema"."Parts" ORDER BY id;
\set VERBOSITY sqlstate
CALL feed('parts', '{"id": 3, "day": "2028-01-01"}');
\set VERBOSITY default
SET client_min_messages = error;
DROP SCHEMA "Other Schema" CASCADE;

-- the statement follows the table
CREATE TABLE changing (id int PRIMARY KEY);
RESET client_min_messages;
SELECT make('changing', 'changing');
ALTER TABLE changing ADD v text;
SELECT statement FROM postpipe_pipelines WHERE pipeline = 'changing';

SET client_min_messages = error;
DROP TABLE changing, batch CASCADE;
DROP SEQUENCE entry;
DROP TYPE mood;
DROP FUNCTION make, run_statement;
DROP PROCEDURE feed;
DROP EXTENSION postpipe;
