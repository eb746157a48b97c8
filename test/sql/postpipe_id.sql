-- The type postpipe_id: input, output, order, indexes, aggregates, time.
\set SHOW_CONTEXT never
-- A warning says that this database is not listed in postpipe.databases, or it does not.
SET client_min_messages = error;
CREATE EXTENSION postpipe;
RESET client_min_messages;

-- input and output
SELECT '1700000000000-5'::postpipe_id, '1700000000000'::postpipe_id, '0-0'::postpipe_id, '007-0010'::postpipe_id;
SELECT '18446744073709551615-18446744073709551615'::postpipe_id;
SELECT NULL::postpipe_id IS NULL AS null_stays_null;
SELECT t, t::postpipe_id::text = t AS same FROM (VALUES ('1-2'), ('18446744073709551615-0'), ('0-18446744073709551615')) v (t);

-- what is no ID
SELECT ''::postpipe_id;
SELECT '-'::postpipe_id;
SELECT '5-'::postpipe_id;
SELECT '-5'::postpipe_id;
SELECT '5-*'::postpipe_id;
SELECT '$'::postpipe_id;
SELECT ' 5-1'::postpipe_id;
SELECT '5-1 '::postpipe_id;
SELECT '5-1-1'::postpipe_id;
SELECT '+5-1'::postpipe_id;
SELECT '0x5-1'::postpipe_id;
SELECT '18446744073709551616-0'::postpipe_id;
SELECT '0-18446744073709551616'::postpipe_id;
SELECT '99999999999999999999999999999999999-0'::postpipe_id;
\set VERBOSITY sqlstate
SELECT 'nonsense'::postpipe_id;
SELECT 1::postpipe_id;
\set VERBOSITY default

-- order: by number, not as text; unsigned
SELECT string_agg(id::text, ' ' ORDER BY id) FROM unnest('{1-10,1-9,1-2,10-0,9-0,0-0,9223372036854775808-0,9223372036854775807-0}'::postpipe_id[]) id;
SELECT string_agg(id::text, ' ' ORDER BY id DESC) FROM unnest('{1-9,1-10,9223372036854775808-0,2-18446744073709551615}'::postpipe_id[]) id;
SELECT a, b, a < b AS lt, a <= b AS le, a = b AS eq, a <> b AS ne, a >= b AS ge, a > b AS gt, postpipe_id_cmp(a, b) AS cmp
FROM (VALUES ('1-9'::postpipe_id, '1-10'::postpipe_id), ('2-0', '1-18446744073709551615'), ('5-5', '5-5'), ('5', '5-0')) v (a, b);
SELECT max(id), min(id) FROM unnest('{1-9,1-10,1-2}'::postpipe_id[]) id;
SELECT max(id), min(id) FROM unnest('{}'::postpipe_id[]) id;
SELECT max(id), min(id) FROM unnest('{NULL,3-3,NULL}'::postpipe_id[]) id;
SELECT '1-9'::postpipe_id BETWEEN '1-2' AND '1-10' AS between_ids, greatest('1-9'::postpipe_id, '1-10'), least('1-9'::postpipe_id, '1-10');
SELECT DISTINCT id FROM unnest('{1-1,1-01,1-1}'::postpipe_id[]) id;

-- btree
CREATE TABLE ids (id postpipe_id PRIMARY KEY, n int);
INSERT INTO ids SELECT ((g % 97) || '-' || g)::postpipe_id, g FROM generate_series(1, 2000) g;
INSERT INTO ids VALUES ('1-1', 0);
INSERT INTO ids VALUES ('1-1', 0) ON CONFLICT (id) DO UPDATE SET n = -1 RETURNING *;
ANALYZE ids;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT n FROM ids WHERE id = '5-102';
SELECT n FROM ids WHERE id = '5-102';
SELECT id FROM ids WHERE id > '95-100' AND id < '96-100' ORDER BY id DESC LIMIT 3;
EXPLAIN (COSTS OFF) SELECT id FROM ids ORDER BY id LIMIT 1;
SELECT max(id), min(id), count(*) FROM ids;
RESET enable_seqscan;
RESET enable_bitmapscan;
SELECT bool_and(id > previous) AS in_order FROM (SELECT id, lag(id) OVER (ORDER BY id) AS previous FROM ids) o;

-- hash
CREATE TABLE hashed AS SELECT id, n FROM ids;
CREATE INDEX hashed_id ON hashed USING hash (id);
SET enable_seqscan = off;
SET enable_bitmapscan = off;
EXPLAIN (COSTS OFF) SELECT n FROM hashed WHERE id = '5-102';
SELECT n FROM hashed WHERE id = '5-102';
SELECT count(*) FROM hashed h WHERE h.id = '5-103';
RESET enable_seqscan;
RESET enable_bitmapscan;
SELECT count(*) FROM (SELECT id FROM hashed UNION SELECT id FROM ids) u;
SELECT postpipe_id_hash('7-1') = postpipe_id_hash('07-01') AS equal_ids_hash_alike;

-- joins: hash, merge, nested loop
SET enable_mergejoin = off;
SET enable_nestloop = off;
SELECT count(*) FROM ids JOIN hashed USING (id);
RESET enable_mergejoin;
SET enable_hashjoin = off;
SELECT count(*) FROM ids JOIN hashed USING (id);
RESET enable_nestloop;
SET enable_mergejoin = off;
SELECT count(*) FROM ids a JOIN ids b ON a.id < b.id WHERE a.n <= 3 AND b.n <= 3;
RESET enable_mergejoin;
RESET enable_hashjoin;

-- the time in an ID
SET DateStyle = ISO;
SET TimeZone = 'UTC';
SELECT postpipe_id_time('0-5'), postpipe_id_time('1700000000123-0'), postpipe_id_time('253402300799999-0');
SELECT postpipe_id_time('18446744073709551615-0'), postpipe_id_time('9223372036854775808-1');
SELECT postpipe_id_time(NULL);
SET TimeZone = 'Asia/Tokyo';
SELECT postpipe_id_time('1700000000123-0');
RESET TimeZone;

-- into text columns by itself, not the other way round
CREATE TABLE texts (entry text, short varchar(40));
INSERT INTO texts SELECT id, id FROM ids WHERE n = 7;
SELECT * FROM texts;
\set VERBOSITY sqlstate
INSERT INTO ids SELECT entry, 1 FROM texts;
SELECT '1-1'::postpipe_id = entry FROM texts;
\set VERBOSITY default
SELECT id::text || '!' FROM ids WHERE n = 7;

-- arrays, rows, COPY
SELECT '{1-1,2}'::postpipe_id[] @> '{2-0}' AS contained, '3-1' = ANY ('{1-1,3-1}'::postpipe_id[]) AS is_any;
SELECT ROW('1-9'::postpipe_id) < ROW('1-10'::postpipe_id) AS row_order;
COPY (SELECT id FROM ids WHERE n < 4 AND n > 0 ORDER BY id) TO STDOUT;
COPY ids FROM STDIN;
500-1	-5
\.
SELECT id FROM ids WHERE n = -5;

DROP TABLE ids, hashed, texts;
DROP EXTENSION postpipe;
