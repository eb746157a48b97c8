# The metrics: the numbers of postpipe_stats under the names that dashboards know, histograms, and the text that Prometheus reads.
# TAP, because it needs a Redis and background workers.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(pause resume);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('metrics', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(q(CREATE TABLE t (id int PRIMARY KEY, v text CHECK (v <> 'bad')); SELECT postpipe_create_pipeline('m', 'stream:m:parsed', target => 't', consumer_group => 'g"\\'||chr(10)||'x')));
is(sql(q(SELECT count(*) FROM postpipe_latency WHERE count = 0 AND p50_seconds IS NULL AND max_seconds IS NULL)), 4, 'nothing was observed yet: no latency');
add(1 .. 20);
add(1 .. 5);
add('bad');
wait_sql($node, 'postgres', q(SELECT applied, dead, pending, lag FROM postpipe_audit), '25|1|0|0', '20 new, 5 again, one bad');
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_metrics WHERE name = 'stream_pending_size' AND value = 0), 1, 'measured');

# The outcomes, each entry once; and what the view has.
is(metric('post_persist_total', status => 'ok'), 20, 'ok');
is(metric('post_persist_total', status => 'conflict'), 5, 'conflict');
is(metric('post_persist_total', status => 'error'), 1, 'error');
is(metric('postpipe_dead_letters', state => 'dead'), 1, 'a dead letter');
is(metric('postpipe_dead_letters', state => 'retrying'), 0, '... and none that is tried again');
is(metric('postpipe_audit_balance'), 0, 'the balance');
is(metric('postpipe_stream_entries'), 26, 'entries in the stream');
is(metric('postpipe_consumers'), 1, 'consumers');
is(sql(q(SELECT value > 500 FROM postpipe_metrics WHERE name = 'postpipe_stream_memory_bytes')), 't', 'the memory that the stream takes');
is(metric('post_persist_dlq_total', error_code => '23514', base_event => 'm.parsed'), 1, 'the dead ones by their SQLSTATE');
is(sql(q(SELECT sum(value) FROM postpipe_metrics WHERE name = 'postpipe_state')), 1, 'one state');
is(metric('postpipe_state', state => 'idle'), 1, '... idle');
is(sql(q(SELECT postpipe_ingest('m', '[{"id": 1001}, {"id": 1002}]'))), 2, 'two events that come another way');
is(metric('postpipe_entries_ingested_total'), 2, '... are counted');
for my $pair (qw(postpipe_entries_read_total=entries_read postpipe_batches_total=batches postpipe_bytes_read_total=bytes_read postpipe_workers=workers postpipe_workers_wanted=workers_wanted postpipe_redis_reconnects_total=reconnects))
{
	my ($name, $column) = split /=/, $pair;
	is(metric($name), sql("SELECT $column FROM postpipe_stats"), "$name is $column");
}
is(sql(q(SELECT DISTINCT labels - '{le,operation,status,state,error_code,base_event}'::text[] FROM postpipe_metrics WHERE name <> 'postpipe_info')), '{"group": "g\"\\\\\nx", "stream": "m.parsed", "datname": "postgres", "pipeline": "m"}', 'the labels of each sample');
is(sql(q(SELECT labels - 'redis_version' FROM postpipe_metrics WHERE name = 'postpipe_info' AND value = 1)), sql(q(SELECT jsonb_build_object('datname', 'postgres', 'version', library, 'hiredis_version', hiredis) FROM postpipe_version())), 'the versions');
is(sql(q(SELECT labels ->> 'redis_version' FROM postpipe_metrics WHERE name = 'postpipe_info')), $redis->command('INFO', 'server') =~ /^redis_version:(\S+?)\r?$/m ? $1 : 'unknown', '... and that of Redis');
is(sql(q(SELECT count(*) FROM (SELECT FROM postpipe_metrics GROUP BY name, labels HAVING count(*) > 1) x)), 0, 'no sample is there twice');

# Histograms: cumulative, the sum of what was seen, the same in both views.
is(sql(q(SELECT count(*) FROM postpipe_histograms WHERE labels ? 'operation' AND name = 'post_persist_latency_seconds')), 3, 'upsert, ack and batch');
is(sql(q(SELECT sum FROM postpipe_histograms WHERE labels ->> 'status' = 'processed')), 25, 'entries of all batches that were settled');
is(sql(q(SELECT sum, count FROM postpipe_histograms WHERE labels ->> 'status' = 'failed')), '1|1', '... and that failed');
is(sql(q(SELECT count FROM postpipe_histograms WHERE name = 'postpipe_end_to_end_seconds')), 25, 'one age for each entry that was applied');
is(sql(q(SELECT DISTINCT h.count = s.batches FROM postpipe_histograms h, postpipe_stats s WHERE labels ->> 'operation' IN ('upsert', 'batch'))), 't', 'one time for each batch');
is(sql(q(SELECT count(*) FROM postpipe_histograms, generate_subscripts(buckets, 1) i WHERE buckets[i] < buckets[i - 1] OR le[i] <= le[i - 1] OR buckets[i] > count)), 0, 'buckets are cumulative');
is(sql(q(SELECT count(*) FROM postpipe_histograms h, generate_subscripts(le, 1) i WHERE NOT EXISTS (SELECT FROM postpipe_metrics m WHERE m.name = h.name || '_bucket' AND m.labels = h.labels || jsonb_build_object('le', le[i]::text) AND value = buckets[i]))), 0, 'each bucket is a sample');
is(sql(q(SELECT count(*) FROM postpipe_histograms h JOIN postpipe_metrics m ON m.name = h.name || '_count' AND m.labels = h.labels AND m.value = h.count)), 6, 'so is each count');
is(sql(q(SELECT 10 = ANY (le) FROM postpipe_histograms WHERE labels ->> 'operation' = 'upsert')), 't', '10 s is a bound');
is(sql(q(SELECT count(*) FROM postpipe_latency WHERE count > 0 AND p50_seconds > 0 AND p50_seconds <= p95_seconds AND p95_seconds <= p99_seconds AND p99_seconds <= max_seconds)), 4, 'the latency of each operation');

# The text: HELP and TYPE once for each family, with its samples behind them; unknown ones are left out.
my @lines = split /\n/, sql('SELECT * FROM postpipe_prometheus()');
my %families;
my $family = '';
for my $line (@lines)
{
	if ($line =~ /^# HELP (\S+) \S/) { ok(!$families{$1}++, "$1 begins once"); $family = $1; next; }
	if ($line =~ /^# TYPE (\S+) (?:counter|gauge|histogram)$/) { is($1, $family, '... with its type'); next; }
	like($line, qr/^\Q$family\E(?:_bucket|_sum|_count)?\{[a-z_]+="(?:[^"\\]|\\["\\n])*"(?:,[a-z_]+="(?:[^"\\]|\\["\\n])*")*\} -?[0-9.e+-]+$/, "a sample: $line");
}
is(scalar(grep { !/^#/ } @lines), sql('SELECT count(*) FROM postpipe_metrics WHERE value IS NOT NULL'), 'a line for each sample that is known');
like(join("\n", @lines), qr/^post_persist_total\{.*group="g\\"\\\\\\nx".*status="ok".*\} 20$/m, 'what has to be escaped is');

my $bounds = q(SELECT string_agg(labels ->> 'le', ' ' ORDER BY value, labels) FROM postpipe_metrics WHERE name LIKE '%_bucket');
is(sql("SET extra_float_digits = -15; $bounds"), sql($bounds), 'the bounds of buckets are the same in every session');

# They survive the worker, and not the pipeline.
my $pid = sql(q(SELECT pid FROM postpipe_workers WHERE backend_type = 'worker'));
sql("SELECT pg_terminate_backend($pid)");
wait_sql($node, 'postgres', "SELECT state FROM postpipe_workers WHERE backend_type = 'worker' AND pid <> $pid", 'idle', 'another worker');
is(metric('post_persist_total', status => 'ok'), 20, 'the counters are kept');
is(sql(q(SELECT sum FROM postpipe_histograms WHERE labels ->> 'status' = 'processed')), 25, '... and the histograms');

# A pipeline without anything to read shows that it hears from Redis.
my $read = sql('SELECT max(last_read_at) FROM postpipe_stats');
wait_sql($node, 'postgres', "SELECT s.last_read_at > '$read' AND w.last_read_at > '$read' AND value > extract(epoch FROM timestamptz '$read') FROM postpipe_stats s, postpipe_workers w, postpipe_metrics WHERE w.backend_type = 'worker' AND name = 'postpipe_last_read_timestamp_seconds'", 't', 'an empty answer to a read is one');
pause('m');
resume('m');
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'm'), 'idle', 'paused and resumed');
is(sql(q(SELECT worker_restarts FROM postpipe_stats WHERE pipeline = 'm')), 1, '... which is no restart of a worker, as its end was');

# Set back to 0, for one pipeline and for all; what is counted inside is not fooled, and the audit not touched.
sql(q(CREATE TABLE t2 (id int); SELECT postpipe_create_pipeline('other', 'stream:other', target => 't2')));
$redis->xadd('stream:other', id => 1);
wait_sql($node, 'postgres', q(SELECT entries_applied FROM postpipe_stats WHERE pipeline = 'other'), 1, 'another pipeline');
my $audit = sql(q(SELECT applied, dead, balance FROM postpipe_audit WHERE pipeline = 'm'));
my $reset = sql(q(SELECT stats_reset FROM postpipe_stats WHERE pipeline = 'm'));
sql(q(SELECT postpipe_reset_stats('m')));
is(sql(q(SELECT entries_read, entries_applied, entries_dead, batches, bytes_read, worker_restarts FROM postpipe_stats WHERE pipeline = 'm')), '0|0|0|0|0|0', 'a reset');
is(sql("SELECT stats_reset > '$reset' FROM postpipe_stats WHERE pipeline = 'm'"), 't', '... and when it was');
is(sql(q(SELECT sum(count) FROM postpipe_histograms WHERE labels ->> 'pipeline' = 'm')), 0, '... of the histograms, too');
is(sql(q(SELECT count(*) FROM postpipe_metrics WHERE name = 'post_persist_dlq_total')), 0, '... and of the errors');
is(sql(q(SELECT entries_applied FROM postpipe_stats WHERE pipeline = 'other')), 1, '... and not of the other pipeline');
add(101 .. 103);
wait_sql($node, 'postgres', q(SELECT entries_applied, entries_read FROM postpipe_stats WHERE pipeline = 'm'), '3|3', 'it counts on');
wait_sql($node, 'postgres', q(SELECT applied, dead, balance FROM postpipe_audit WHERE pipeline = 'm'), '28|1|0', 'the audit goes on') or diag($audit);
sql('SELECT postpipe_reset_stats()');
is(sql('SELECT sum(entries_applied) FROM postpipe_stats'), 0, 'all of them');
sql(q(SELECT postpipe_drop_pipeline('other')));
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_workers WHERE pipeline = 'other'), 0, 'one that was set back is dropped');
sql(q(SELECT postpipe_create_pipeline('next', 'stream:next', target => 't2')));
$redis->xadd('stream:next', id => 1);
wait_sql($node, 'postgres', q(SELECT entries_read, entries_applied, batches FROM postpipe_stats WHERE pipeline = 'next'), '1|1|1', '... and the next one has numbers of its own');
sql(q(SELECT postpipe_drop_pipeline('next')));

# More SQLSTATEs than there is room for: fifteen have a number of their own, and the others one together.
sql(<<'SQL');
CREATE TABLE codes (code text);
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION USING ERRCODE = NEW.code; END';
CREATE TRIGGER fail BEFORE INSERT ON codes FOR EACH ROW EXECUTE FUNCTION fail();
SELECT postpipe_create_pipeline('codes', 'stream:codes', target => 'codes');
SQL
$redis->xadd('stream:codes', code => sprintf 'U%04d', $_) for 1 .. 20, 1, 20;
wait_sql($node, 'postgres', q(SELECT entries_dead FROM postpipe_stats WHERE pipeline = 'codes'), 22, '22 entries with twenty SQLSTATEs are dead');
my $codes = q(FROM postpipe_metrics WHERE name = 'post_persist_dlq_total' AND labels ->> 'pipeline' = 'codes');
is(sql("SELECT count(*), sum(value) $codes"), '16|22', '... counted in sixteen numbers');
is(sql("SELECT string_agg(concat_ws(' ', labels ->> 'error_code', value), ', ' ORDER BY value) $codes AND value > 1"), 'U0001 2, other 6', '... of which the last one is that of all others');
sql(q(SELECT postpipe_drop_pipeline('codes', discard_dead => true)));

# Redis is away: what it alone knows is NULL, and not in the text. Also of an entry that was pending then.
my $session = pp_session($node);
$session->('BEGIN; LOCK TABLE t');
add(104);
wait_sql($node, 'postgres', q(SELECT value > 0 FROM postpipe_metrics WHERE name = 'postpipe_oldest_pending_timestamp_seconds'), 't', 'an entry is pending');
$redis->stop;
wait_sql($node, 'postgres', q(SELECT value IS NULL FROM postpipe_metrics WHERE name = 'stream_pending_size'), 't', 'pending is not known');
unlike(sql('SELECT * FROM postpipe_prometheus()'), qr/^(?:stream_pending_size|postpipe_oldest_pending_timestamp_seconds)\{/m, '... and left out');
$session->('COMMIT');

# Who monitors may look.
sql('CREATE ROLE watcher; GRANT pg_monitor TO watcher');
is($node->safe_psql('postgres', q(SET ROLE watcher; SELECT count(*) > 0 FROM postpipe_metrics, postpipe_histograms, postpipe_latency, postpipe_prometheus())), 't', 'pg_monitor may read all of it');
my (undef, undef, $error) = $node->psql('postgres', 'CREATE ROLE nobody; SET ROLE nobody; SELECT * FROM postpipe_prometheus()');
like($error, qr/permission denied/, '... and others may not');
$node->stop;
done_testing();

sub add { $redis->xadd('stream:m:parsed', id => $_ eq 'bad' ? 99 : $_, v => $_) for @_; return }

sub metric
{
	my ($name, %labels) = @_;
	return sql("SELECT value FROM postpipe_metrics WHERE name = '$name'" . join '', map { " AND labels ->> '$_' = '$labels{$_}'" } keys %labels);
}
