-- postpipe_create_pipeline: an option is refused when it cannot work, not by a worker later on; and targets that cannot be.
\set SHOW_CONTEXT never
-- A warning says that this database is not listed in postpipe.databases, or it does not.
SET client_min_messages = error;
CREATE EXTENSION postpipe;
RESET client_min_messages;
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE UNLOGGED TABLE not_logged (id int PRIMARY KEY);
CREATE TEMP TABLE temporary (id int PRIMARY KEY);
CREATE FUNCTION try(options jsonb, target text DEFAULT 't', statement text DEFAULT NULL) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM postpipe_create_pipeline('p', 'stream:p', target => try.target, statement => try.statement, options => try.options, enabled => false);
    PERFORM postpipe_drop_pipeline('p');
    RETURN 'accepted';
EXCEPTION WHEN invalid_parameter_value OR invalid_text_representation OR numeric_value_out_of_range OR object_not_in_prerequisite_state
        OR wrong_object_type OR feature_not_supported OR invalid_datetime_format THEN
    RETURN 'refused';
END $$;

-- what is right
SELECT options, try(options::jsonb) FROM (VALUES
    ('{}'), ('{"batch_size": 1}'), ('{"batch_size": "500"}'), ('{"batch_size": 100000}'),
    ('{"batch_bytes": 64}'), ('{"batch_bytes": "1GB"}'), ('{"batch_bytes": "2000000B"}'),
    ('{"statement_timeout": 0}'), ('{"statement_timeout": 60000}'),
    ('{"lock_timeout": 0}'), ('{"lock_timeout": 1000}'), ('{"lock_timeout": "2s"}'),
    ('{"synchronous_commit": "off"}'), ('{"synchronous_commit": "remote_apply"}'), ('{"synchronous_commit": true}'),
    ('{"claim_foreign": true}'), ('{"claim_foreign": "no"}'), ('{"claim_idle": 1000}'), ('{"claim_idle": "5min"}'),
    ('{"reap_consumers": "1 hour"}'), ('{"reap_consumers": "0"}'),
    ('{"allow_unlogged": true}'), ('{"allow_unlogged": false}'),
    ('{"max_retries": 0}'), ('{"max_retries": 1000}'), ('{"retry_delay": 10}'), ('{"retry_delay": "1h"}'),
    ('{"error_threshold": 0}'), ('{"error_threshold": 0.25}'), ('{"error_threshold": "1"}'),
    ('{"dead_letter_retention": "30 days"}'), ('{"dead_letter_stream": "stream:dead"}')) v (options);

-- what is wrong
SELECT options, try(options::jsonb) FROM (VALUES
    ('{"batch_size": 0}'), ('{"batch_size": -1}'), ('{"batch_size": 100001}'), ('{"batch_size": 99999999999}'), ('{"batch_size": 1.5}'),
    ('{"batch_size": "many"}'), ('{"batch_size": true}'), ('{"batch_size": [10]}'), ('{"batch_size": {}}'),
    ('{"batch_bytes": 63}'), ('{"batch_bytes": "2GB"}'), ('{"batch_bytes": "much"}'), ('{"batch_bytes": "1h"}'), ('{"batch_bytes": true}'),
    ('{"statement_timeout": -1}'), ('{"statement_timeout": "soon"}'), ('{"statement_timeout": []}'),
    ('{"lock_timeout": -1}'), ('{"lock_timeout": "soon"}'), ('{"lock_timeout": []}'),
    ('{"synchronous_commit": "perhaps"}'), ('{"synchronous_commit": 7}'),
    ('{"max_retries": -1}'), ('{"max_retries": 1001}'), ('{"max_retries": "some"}'),
    ('{"retry_delay": 9}'), ('{"retry_delay": "61min"}'), ('{"retry_delay": "soon"}'), ('{"retry_delay": {}}'),
    ('{"error_threshold": -0.1}'), ('{"error_threshold": 1.1}'), ('{"error_threshold": "half"}'), ('{"error_threshold": "NaN"}'), ('{"error_threshold": true}'),
    ('{"dead_letter_retention": "0"}'), ('{"dead_letter_retention": "-1 day"}'), ('{"dead_letter_retention": "some time"}'),
    ('{"dead_letter_stream": ""}'), ('{"dead_letter_stream": "stream:p"}'),
    ('{"claim_foreign": "perhaps"}'), ('{"claim_foreign": 7}'), ('{"claim_idle": 999}'), ('{"claim_idle": "soon"}'), ('{"claim_idle": "1 fortnight"}'),
    ('{"reap_consumers": "-1s"}'), ('{"reap_consumers": "soon"}'), ('{"reap_consumers": true}'),
    ('{"allow_unlogged": "perhaps"}'), ('{"start_id": "yesterday"}'),
    ('[]'), ('1'), ('null'), ('{"unknown": 1}')) v (options);

-- and says which option that is
CREATE FUNCTION why(options jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM postpipe_create_pipeline('p', 'stream:p', target => 't', options => why.options, enabled => false);
    RETURN 'accepted';
EXCEPTION WHEN invalid_parameter_value THEN
    RETURN SQLERRM;
END $$;
SELECT why(options::jsonb) FROM (VALUES
    ('{"batch_size": "abc"}'), ('{"batch_size": ""}'), ('{"batch_size": 1.5}'), ('{"batch_size": true}'), ('{"batch_size": 99999999999}'), ('{"max_retries": "1 "}'),
    ('{"batch_bytes": "63kB"}'), ('{"batch_bytes": "1h"}'),
    ('{"ledger_retention": "abc"}'), ('{"ledger_retention": ""}'), ('{"ledger_retention": true}'), ('{"ledger_retention": "59 s"}'), ('{"reap_consumers": "soon"}'),
    ('{"dead_letter_retention": "abc"}'), ('{"dead_letter_retention": "P1X"}'),
    ('{"ledger_retention": "1000000 years"}'), ('{"reap_consumers": "-1 s"}'), ('{"dead_letter_retention": "10000 years"}')) v (options);
SELECT options, try(options::jsonb) FROM (VALUES ('{"ledger_retention": "P1Y2M3DT4H"}'), ('{"ledger_retention": "1 year 2 mons"}'), ('{"ledger_retention": "60"}'), ('{"batch_size": "007"}')) v (options);
DROP FUNCTION why;

-- false is not true
SELECT options, try(options::jsonb, 'not_logged') FROM (VALUES ('{}'), ('{"allow_unlogged": false}'), ('{"allow_unlogged": true}')) v (options);

-- a table of this session only is none for a worker
SELECT try('{}', 'temporary') AS target;
SELECT try('{}', NULL, 'INSERT INTO temporary SELECT ord FROM postpipe_batch') AS statement;
BEGIN;
INSERT INTO temporary VALUES (0);
SELECT try('{}', NULL, 'INSERT INTO temporary SELECT ord FROM postpipe_batch') AS "in a transaction that has used it";
SELECT try('{}', NULL, 'INSERT INTO t (id) SELECT ord FROM postpipe_batch') AS "which another statement may";
ROLLBACK;

-- one word for what cannot be in a pipeline, not an internal error
\set VERBOSITY sqlstate
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'COMMIT');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'COPY t FROM STDIN');
SELECT postpipe_create_pipeline('p', 'stream:p', statement => 'VACUUM t');
\set VERBOSITY default

SELECT pipeline FROM postpipe_pipelines;
DROP FUNCTION try;
DROP TABLE t, not_logged, temporary;
DROP EXTENSION postpipe;
