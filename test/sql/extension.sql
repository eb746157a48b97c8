-- CREATE and DROP EXTENSION, again and again in one session; the pipeline posts, which exists without a row.
\set SHOW_CONTEXT never
-- A warning says that this database is not listed in postpipe.databases, or it does not.
SET client_min_messages = error;
CREATE EXTENSION postpipe;

SELECT pipeline, stream, consumer_group, target, key, on_conflict, newer_by, event_types, generated, workers, enabled, created_at
FROM postpipe_pipelines;
SELECT count(*) FROM postpipe_pipeline;
SELECT pipeline, state FROM postpipe_status;
SELECT library = sql AS same, tls FROM postpipe_version();

-- created again in the same session, with what the session has cached
CREATE TABLE kept (id int PRIMARY KEY, v text);
SELECT postpipe_create_pipeline('kept', 'stream:kept', target => 'kept', enabled => false) IS NOT NULL AS made;
DROP EXTENSION postpipe;
SELECT to_regclass('postpipe_pipeline') IS NULL AS gone, to_regtype('postpipe_id') IS NULL AS type_gone, to_regclass('kept') IS NOT NULL AS table_kept;
CREATE EXTENSION postpipe;
SELECT pipeline FROM postpipe_pipelines;
SELECT postpipe_create_pipeline('kept', 'stream:kept', target => 'kept', enabled => false) IS NOT NULL AS made;
SELECT pipeline FROM postpipe_pipelines ORDER BY 1;
SELECT '1-1'::postpipe_id;
DROP EXTENSION postpipe;

-- in one transaction, and undone
BEGIN;
CREATE EXTENSION postpipe;
SELECT count(*) FROM postpipe_pipelines;
ROLLBACK;
SELECT to_regtype('postpipe_id') IS NULL AS gone;
BEGIN;
CREATE EXTENSION postpipe;
DROP EXTENSION postpipe;
CREATE EXTENSION postpipe;
COMMIT;
BEGIN;
DROP EXTENSION postpipe;
ROLLBACK;
SELECT count(*) FROM postpipe_pipelines;

-- a column of the type keeps the extension, unless CASCADE is said
CREATE TABLE uses_type (id postpipe_id, v text);
\set VERBOSITY sqlstate
DROP EXTENSION postpipe;
\set VERBOSITY default
DROP EXTENSION postpipe CASCADE;
SELECT attname FROM pg_attribute WHERE attrelid = 'uses_type'::regclass AND attnum > 0 AND NOT attisdropped;
DROP TABLE uses_type;

-- in a schema of its own, with a name that needs quotes, which is not in the search_path
CREATE SCHEMA "Post Pipe";
CREATE EXTENSION postpipe SCHEMA "Post Pipe";
SELECT pipeline FROM "Post Pipe".postpipe_pipelines;
SELECT "Post Pipe".postpipe_create_pipeline('kept', 'stream:kept', target => 'kept', enabled => false);
SELECT "Post Pipe".postpipe_pause('kept', 'again');
SELECT pipeline, enabled_reason FROM "Post Pipe".postpipe_pipelines WHERE pipeline = 'kept';
SELECT count(*) FROM "Post Pipe".postpipe_dlq;
SELECT count(*) FROM "Post Pipe".postpipe_audit;
SELECT "Post Pipe".postpipe_drop_pipeline('kept');
\set VERBOSITY sqlstate
ALTER EXTENSION postpipe SET SCHEMA public;
\set VERBOSITY default
DROP SCHEMA "Post Pipe" CASCADE;
RESET client_min_messages;

-- the pipeline posts: dropped it leaves no pipeline, also for another session, and can be made by hand
SET client_min_messages = error;
CREATE EXTENSION postpipe;
RESET client_min_messages;
SELECT postpipe_drop_pipeline('posts');
SELECT count(*) FROM postpipe_pipelines;
SELECT count(*) FROM postpipe_stats;
SELECT postpipe_drop_pipeline('posts');
SELECT postpipe_drop_pipeline('posts', if_exists => true);
SELECT postpipe_pause('posts');
\c -
\set SHOW_CONTEXT never
SELECT count(*) FROM postpipe_pipelines;
SELECT postpipe_create_pipeline('posts', 'stream:other', target => 'kept', enabled => false) IS NOT NULL AS made;
SELECT pipeline, stream, consumer_group, target, on_conflict, enabled FROM postpipe_pipelines;
SELECT postpipe_create_pipeline('posts', 'stream:other', target => 'kept');
SELECT postpipe_drop_pipeline('posts');
SELECT count(*) FROM postpipe_pipelines;
BEGIN;
SELECT postpipe_create_pipeline('posts', 'stream:other', target => 'kept', enabled => false) IS NOT NULL AS made;
ROLLBACK;
SELECT count(*) FROM postpipe_pipelines;

DROP EXTENSION postpipe;
DROP TABLE kept;
