-- The settings: what there is, and that a bad value is refused with the reason and the valid range. Nothing is changed here.
\set SHOW_CONTEXT never
SELECT name, context, vartype, coalesce(unit, '') AS unit, min_val, max_val, boot_val FROM pg_settings
WHERE name LIKE 'postpipe.%' ORDER BY name;
SELECT count(*) FROM pg_settings WHERE name LIKE 'postpipe.%' AND (short_desc = '' OR short_desc LIKE '%.%.');

-- not by SET, and no setting that does not exist
\set VERBOSITY sqlstate
SET postpipe.batch_size = 10;
SET postpipe.redis_url = 'redis://localhost';
SET postpipe.nonsense = 1;
ALTER SYSTEM SET postpipe.nonsense = 1;
ALTER DATABASE contrib_regression SET postpipe.enabled = off;
\set VERBOSITY default

-- numbers
ALTER SYSTEM SET postpipe.batch_size = 0;
ALTER SYSTEM SET postpipe.batch_size = 100001;
ALTER SYSTEM SET postpipe.batch_size = -1;
ALTER SYSTEM SET postpipe.max_retries = -1;
ALTER SYSTEM SET postpipe.max_retries = 1001;
ALTER SYSTEM SET postpipe.max_workers = 0;
-- how a range with a unit is written differs between versions
\set VERBOSITY sqlstate
ALTER SYSTEM SET postpipe.batch_size = 'many';
ALTER SYSTEM SET postpipe.batch_bytes = 1;
ALTER SYSTEM SET postpipe.batch_bytes = '2GB';
ALTER SYSTEM SET postpipe.retry_delay = 0;
ALTER SYSTEM SET postpipe.retry_delay = '2h';
ALTER SYSTEM SET postpipe.claim_idle = '10ms';
ALTER SYSTEM SET postpipe.dead_letter_retention = '-1d';
ALTER SYSTEM SET postpipe.enabled = 'perhaps';
\set VERBOSITY default

-- databases
ALTER SYSTEM SET postpipe.databases = '"postgres';
ALTER SYSTEM SET postpipe.databases = 'a,,b';
SELECT string_agg('d' || g, ',') AS too_many FROM generate_series(1, 65) g \gset
ALTER SYSTEM SET postpipe.databases = :'too_many';
SELECT 'postgres, ' || repeat('d', 64) AS too_long \gset
ALTER SYSTEM SET postpipe.databases = :'too_long';

-- redis_url
ALTER SYSTEM SET postpipe.redis_url = '';
ALTER SYSTEM SET postpipe.redis_url = 'localhost:6379';
ALTER SYSTEM SET postpipe.redis_url = 'http://localhost:6379';
ALTER SYSTEM SET postpipe.redis_url = 'REDIS://localhost';
ALTER SYSTEM SET postpipe.redis_url = 'rediss://localhost:6380';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost:0';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost:65536';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost:';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost:port';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost:99999999999999999999';
ALTER SYSTEM SET postpipe.redis_url = 'redis://[::1';
ALTER SYSTEM SET postpipe.redis_url = 'redis://[::1]6379';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost/none';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost/-1';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost/0?timeout=5';
ALTER SYSTEM SET postpipe.redis_url = 'unix://redis.sock';
ALTER SYSTEM SET postpipe.redis_url = 'unix:///redis.sock?timeout=5';
SELECT 'redis://' || repeat('h', 5000) AS long_host, 'unix:///' || repeat('h', 101) AS long_path,
       'redis://:' || repeat('p', 5000) || '@localhost' AS long_password \gset
ALTER SYSTEM SET postpipe.redis_url = :'long_host';
ALTER SYSTEM SET postpipe.redis_url = :'long_path';
ALTER SYSTEM SET postpipe.redis_url = :'long_password';

-- no message repeats a password
ALTER SYSTEM SET postpipe.redis_url = 'http://user:hunter2@localhost';
ALTER SYSTEM SET postpipe.redis_url = 'rediss://user:hunter2@localhost';
ALTER SYSTEM SET postpipe.redis_url = 'redis://:hunter2@localhost:0';
ALTER SYSTEM SET postpipe.redis_url = 'redis://:hunter2@localhost/x';
ALTER SYSTEM SET postpipe.redis_url = 'redis://:hunter2%ZZ@localhost';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost:hunter2';
ALTER SYSTEM SET postpipe.redis_url = 'redis://localhost?password=hunter2';
