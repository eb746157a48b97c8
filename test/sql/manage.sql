-- Pause, resume and drop of pipelines that do not run, and their arguments.
\set SHOW_CONTEXT never
-- A warning says that this database is not listed in postpipe.databases, or it does not.
SET client_min_messages = error;
CREATE EXTENSION postpipe;
RESET client_min_messages;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE VIEW shown AS
    SELECT pipeline, enabled, regexp_replace(enabled_reason, 'by .*', 'by somebody') AS enabled_reason, altered_at IS NOT NULL AS altered
    FROM postpipe_pipelines WHERE pipeline <> 'posts' ORDER BY pipeline;

SELECT postpipe_create_pipeline('one', 'stream:one', target => 't', enabled => false) IS NOT NULL AS made;
SELECT * FROM shown;
SELECT state, reason_code, reason FROM postpipe_stats WHERE pipeline = 'one' AND state NOT IN ('stopped', 'paused');

-- resume and pause
SELECT postpipe_resume('one');
SELECT * FROM shown;
SELECT postpipe_resume('one');
SELECT postpipe_pause('one');
SELECT * FROM shown;
SELECT postpipe_pause('one', 'maintenance of t');
SELECT * FROM shown;
SELECT postpipe_pause('one', NULL);
SELECT * FROM shown;
SELECT postpipe_resume('one', take_over => true);
SELECT * FROM shown;
SELECT postpipe_pause('one', repeat('a long reason ', 500));
SELECT length(enabled_reason) FROM postpipe_pipelines WHERE pipeline = 'one';

-- undone with the transaction
SELECT postpipe_pause('one', 'kept');
BEGIN;
SELECT postpipe_resume('one');
SELECT * FROM shown;
ROLLBACK;
SELECT * FROM shown;
BEGIN;
SELECT postpipe_drop_pipeline('one');
SELECT count(*) FROM shown;
ROLLBACK;
SELECT count(*) FROM shown;

-- posts: paused it has a row, and resumed it goes on
SELECT postpipe_pause('posts', 'not now');
SELECT pipeline, enabled, enabled_reason FROM postpipe_pipelines WHERE pipeline = 'posts';
SELECT stream, consumer_group, target, key, on_conflict, newer_by, event_types FROM postpipe_pipelines WHERE pipeline = 'posts';
SELECT postpipe_resume('posts');
SELECT pipeline, enabled, enabled_reason FROM postpipe_pipelines WHERE pipeline = 'posts';

-- a pipeline that is not there
SELECT postpipe_pause('nobody');
SELECT postpipe_resume('nobody');
SELECT postpipe_drop_pipeline('nobody');
SELECT postpipe_drop_pipeline('nobody', if_exists => true);
SELECT postpipe_wait_state('nobody', 'paused');
SELECT postpipe_rewind('nobody');
SELECT postpipe_pause('');
SELECT postpipe_pause(repeat('x', 100));

-- nothing is written in a read-only transaction
SET default_transaction_read_only = on;
SELECT postpipe_create_pipeline('two', 'stream:two', target => 't');
SELECT postpipe_alter_pipeline('one', workers => 2);
SELECT postpipe_drop_pipeline('one');
SELECT postpipe_pause('one');
SELECT postpipe_resume('one');
SELECT postpipe_rewind('one');
SELECT postpipe_replay('one');
SELECT postpipe_discard('one');
RESET default_transaction_read_only;

-- NULL
SELECT postpipe_pause(NULL);
SELECT postpipe_rewind(NULL);
SELECT postpipe_resume(NULL) IS NULL AS nothing, postpipe_drop_pipeline(NULL) IS NULL AS nothing_dropped, postpipe_wait_state('one', NULL) IS NULL AS no_state;
SELECT postpipe_drop_pipeline('one', destroy_group => NULL) IS NULL AS nothing;
SELECT count(*) FROM shown;

-- states
SELECT postpipe_wait_state('one', 'sleeping', '0s');
SELECT postpipe_wait_state('one', 'fenced', '0s');
SELECT postpipe_wait_state('one', 'fenced', '-1 hour');
SELECT postpipe_wait_state('one', 'fenced', '10ms');

-- rewind: only a paused pipeline, and a to_id that is one
SELECT postpipe_resume('one');
SELECT postpipe_rewind('one', to_id => 'nonsense');
SELECT postpipe_rewind('one', to_id => '0-0', to_time => now());
SELECT postpipe_rewind('one', to_id => '0-0');

-- dropped: nothing is left of it
SELECT postpipe_drop_pipeline('one');
SELECT * FROM shown;
SELECT count(*) FROM postpipe_stats WHERE pipeline = 'one';
SELECT to_regclass('t') IS NOT NULL AS table_kept;

DROP VIEW shown;
DROP TABLE t;
DROP EXTENSION postpipe;
