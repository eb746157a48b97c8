-- postpipe_create_pipeline: what is wrong is said when the pipeline is made, and nothing is left of it.
\set SHOW_CONTEXT never
-- A warning says that this database is not listed in postpipe.databases, or it does not.
SET client_min_messages = error;
CREATE EXTENSION postpipe;
RESET client_min_messages;
CREATE TABLE t (id int PRIMARY KEY, v text, n int);
CREATE TABLE no_key (id int, v text);

-- target or statement
SELECT postpipe_create_pipeline('p', 'stream:p');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', statement => 'SELECT 1 FROM postpipe_batch');

-- names
SELECT postpipe_create_pipeline(NULL, 'stream:p', target => 't');
SELECT postpipe_create_pipeline('p', NULL, target => 't');
SELECT postpipe_create_pipeline('', 'stream:p', target => 't');
SELECT postpipe_create_pipeline('P', 'stream:p', target => 't');
SELECT postpipe_create_pipeline('1p', 'stream:p', target => 't');
SELECT postpipe_create_pipeline('a-b', 'stream:p', target => 't');
SELECT postpipe_create_pipeline('a b', 'stream:p', target => 't');
SELECT postpipe_create_pipeline('p''; DROP TABLE t; --', 'stream:p', target => 't');
SELECT postpipe_create_pipeline(repeat('p', 49), 'stream:p', target => 't');
SELECT postpipe_create_pipeline(repeat('p', 48), 'stream:p', target => 't', enabled => false) IS NOT NULL AS longest_name;
SELECT postpipe_drop_pipeline(repeat('p', 48));
SELECT postpipe_create_pipeline('posts', 'stream:p', target => 't');
SELECT postpipe_create_pipeline('p', '', target => 't');
SELECT postpipe_create_pipeline('p', repeat('s', 256), target => 't');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', consumer_group => '');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', consumer_group => repeat('g', 256));

-- other arguments
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', on_conflict => 'replace');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', on_conflict => NULL);
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', on_conflict => 'newer');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', on_conflict => 'newer', newer_by => 'nothere');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', workers => 0);
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', workers => 65);
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', start_id => 'yesterday');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', start_id => '1-1", "batch_size": "1');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', redis => 'other');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": {"merge": "sum"}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": {"fields": "v"}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": {"fields": []}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": {"merge": 1}}');
-- a word that is spelled wrong, a column that is not there, or what is no rule at all
CREATE TABLE computed (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED, n int GENERATED ALWAYS AS IDENTITY, v text);
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"nope": {}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"V": {}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"ctid": {}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'computed', columns => '{"twice": {}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'computed', columns => '{"n": {}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": {"felds": ["a"]}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"*": {"felds": ["a"]}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": 5}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": ["a"]}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": {"fields": ["a", 5]}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": {"fields": [""]}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '{"v": {"empty": "nul"}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '[]');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', columns => '5');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'SELECT FROM postpipe_batch', columns => '{}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'computed', enabled => false,
    columns => '{"id": {}, "*": {"empty": "keep"}, "v": {"fields": ["a", "$id"], "merge": "first", "empty": "null"}}') IS NOT NULL AS made;
SELECT postpipe_drop_pipeline('p');
DROP TABLE computed;

-- two that exclude each other
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', start_id => '5-0', start_time => '2026-01-01');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', start_id => '$', start_time => '2026-01-01');

-- lists of names
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', key => '{NULL}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', key => '{{id}}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', event_types => '{made,NULL}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', event_types => '{{made},{changed}}');

-- options
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', options => '{"batchsize": 10}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', options => '[]');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', options => '"batch_size"');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', options => '{"batch_size": 0}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', options => '{"batch_size": 100001}');

-- the target
\set VERBOSITY sqlstate
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'nothere');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'noschema.nothere');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't; DROP TABLE t');
SELECT postpipe_create_pipeline('p', 'stream:p', target => '');
\set VERBOSITY default
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', key => '{nothere}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', key => '{id,nothere}');
\set VERBOSITY sqlstate
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', key => '{v}');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'no_key', key => '{id}');
\set VERBOSITY default
CREATE UNLOGGED TABLE not_logged (id int PRIMARY KEY);
CREATE VIEW a_view AS SELECT * FROM t;
CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS id;
CREATE SEQUENCE a_sequence;
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'not_logged');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'not_logged', options => '{"allow_unlogged": true}', enabled => false) IS NOT NULL AS made;
SELECT postpipe_drop_pipeline('p', if_exists => true);
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'a_view');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'a_matview');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'a_sequence');
\set VERBOSITY sqlstate
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't_pkey');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'pg_catalog.pg_class');


-- the statement: one, that can be parsed, planned and run
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSRT INTO t SELECT 1');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO nothere SELECT 1 FROM postpipe_batch');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO t (id) SELECT nothere FROM postpipe_batch');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO t (id) SELECT $1 FROM postpipe_batch');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO t (id) SELECT ord::date FROM postpipe_batch');
\set VERBOSITY default
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'DELETE FROM t; DELETE FROM no_key');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => '');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => ' ; -- nothing');

-- who may
CREATE ROLE regress_postpipe_low;
CREATE ROLE regress_postpipe_other;
CREATE TABLE other_table (id int PRIMARY KEY, v text);
ALTER TABLE other_table OWNER TO regress_postpipe_other;
\set VERBOSITY sqlstate
SET ROLE regress_postpipe_low;
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't');
SELECT postpipe_pause('posts');
SELECT postpipe_drop_pipeline('posts');
INSERT INTO postpipe_pipeline (pipeline, owner, stream, consumer_group, search_path) VALUES ('p', 10, 's', 'g', '');
RESET ROLE;
\set VERBOSITY default
GRANT EXECUTE ON FUNCTION postpipe_create_pipeline, postpipe_pause, postpipe_resume, postpipe_drop_pipeline TO regress_postpipe_low;
SET ROLE regress_postpipe_low;
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'other_table');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'other_table', owner => 'regress_postpipe_other');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 'other_table', owner => 'regress_postpipe_nobody');
\set VERBOSITY sqlstate
SELECT postpipe_pause('posts');
SELECT postpipe_resume('posts');
SELECT postpipe_drop_pipeline('posts');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO other_table SELECT 1 FROM postpipe_batch');
RESET ROLE;
GRANT SELECT ON other_table TO regress_postpipe_low;
SET ROLE regress_postpipe_low;
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO other_table SELECT 1 FROM postpipe_batch');
RESET ROLE;
-- a superuser's statement does not write what somebody else owns
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO other_table (id) SELECT ord FROM postpipe_batch');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'WITH x AS (DELETE FROM other_table RETURNING id) SELECT * FROM x, postpipe_batch');
\set VERBOSITY default
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'INSERT INTO other_table (id) SELECT ord FROM postpipe_batch', owner => 'regress_postpipe_other', enabled => false);
SELECT pipeline, owner FROM postpipe_pipelines WHERE pipeline = 'p';
SELECT postpipe_drop_pipeline('p');

-- nothing is left of all this
SELECT pipeline FROM postpipe_pipelines;
SELECT count(*) FROM t;

-- what is right
\pset format unaligned
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', enabled => false) IS NOT NULL AS made;
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't');
SELECT postpipe_create_pipeline('p', 'stream:p', target => 't', if_not_exists => true);
SELECT postpipe_create_pipeline('q', 'stream:p', target => 'no_key', enabled => false) IS NOT NULL AS made;
SELECT postpipe_create_pipeline('r', 'stream:p', statement => 'SELECT count(*) FROM postpipe_batch', enabled => false);
SELECT postpipe_create_pipeline('s', 'stream:p', statement => 'INSERT INTO t (id) SELECT ord FROM postpipe_batch;', consumer_group => 'my group',
    event_types => '{a,b}', start_id => '5-1', workers => 64, options => '{"batch_size": 100000, "lock_timeout": "1s"}', enabled => false);
SELECT postpipe_create_pipeline('u', 'stream:p', target => 'public."t"', start_time => '2023-11-14 22:13:20.5+00', enabled => false) IS NOT NULL AS made;
SELECT pipeline, stream, consumer_group, target, key, on_conflict, event_types, generated, workers, enabled, enabled_reason, options
FROM postpipe_pipelines WHERE pipeline <> 'posts' ORDER BY pipeline;

SET client_min_messages = error;
DROP TABLE t, no_key, not_logged, other_table CASCADE;
RESET client_min_messages;
SELECT pipeline, statement IS NULL AS no_statement FROM postpipe_pipelines WHERE pipeline <> 'posts' ORDER BY pipeline;
DROP MATERIALIZED VIEW a_matview;
DROP SEQUENCE a_sequence;
DROP EXTENSION postpipe;
DROP ROLE regress_postpipe_low, regress_postpipe_other;
