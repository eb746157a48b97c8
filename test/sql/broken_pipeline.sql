-- A pipeline whose table has changed so that it no longer fits: it must not hide the others from the views.
\set SHOW_CONTEXT never
-- A warning says that this database is not listed in postpipe.databases, or it does not.
SET client_min_messages = error;
CREATE EXTENSION postpipe;
RESET client_min_messages;
CREATE TABLE one (id int PRIMARY KEY, v text);
CREATE TABLE two (id int PRIMARY KEY, v text, at timestamptz);
SELECT postpipe_create_pipeline('one', 'stream:one', target => 'one', enabled => false) IS NOT NULL AS made;
SELECT postpipe_create_pipeline('two', 'stream:two', target => 'two', key => '{id}', on_conflict => 'newer', newer_by => 'at', enabled => false) IS NOT NULL AS made;
CREATE VIEW shown AS SELECT pipeline, statement IS NOT NULL AS statement FROM postpipe_pipelines WHERE pipeline <> 'posts' ORDER BY pipeline;
SELECT * FROM shown;

-- without the column that tells what is newer
ALTER TABLE two DROP COLUMN at;
SELECT * FROM shown;
SELECT count(*) FROM postpipe_dlq;
SELECT count(*) FROM postpipe_stats;
SELECT count(*) FROM postpipe_status;

-- without its key
ALTER TABLE two DROP COLUMN id;
SELECT * FROM shown;
SELECT count(*) FROM postpipe_dlq;

-- without the table; with a view, and with an index of that name
DROP TABLE two;
SELECT * FROM shown;
CREATE VIEW two AS SELECT 1 AS id;
SELECT * FROM shown;
DROP VIEW two;
CREATE INDEX two ON one (v);
SELECT * FROM shown;
SELECT count(*) FROM postpipe_dlq;

-- it can be managed all the same
SELECT postpipe_pause('two', 'no table');
SELECT postpipe_resume('two');
SELECT postpipe_drop_pipeline('two');
SELECT * FROM shown;

DROP VIEW shown;
DROP TABLE one;
DROP EXTENSION postpipe;
