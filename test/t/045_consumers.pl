# The operator's view of a group: its consumers, what is pending, making the group, deleting consumers that nobody uses.
# TAP, because it takes a Redis with consumers of others, and some that act at the same time.
use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('consumers', redis => $redis, databases => 'postgres');
sql(q(CREATE EXTENSION postpipe; SELECT postpipe_drop_pipeline('posts')));
my $system = sql('SELECT system_identifier FROM pg_control_system()');
my $database = sql(q(SELECT oid FROM pg_database WHERE datname = 'postgres'));
my ($stream, $group) = ('stream:c', 'shared');
my $own = "postpipe:$system:$database:main:1";

# --- The group, made by hand.
make('main', enabled => 'false', workers => 2);
like(error(q(SELECT * FROM postpipe_consumers('main'))), qr/Redis: /, 'without a group there are no consumers');
is(sql(q(SELECT postpipe_create_group('main', '5-1'))), 't', 'the group is made');
is({ @{ $redis->command('XINFO', 'GROUPS', $stream)->[0] } }->{'last-delivered-id'}, '5-1', '... where it was told to begin');
is(sql(q(SELECT postpipe_create_group('main'))), 'f', 'it is there already');
is({ @{ $redis->command('XINFO', 'GROUPS', $stream)->[0] } }->{'last-delivered-id'}, '5-1', '... and is not moved');
like(error(q(SELECT postpipe_create_group('main', 'yesterday'))), qr/invalid start_id "yesterday"/, 'a wrong start_id');
like(error(q(SELECT postpipe_create_group('nothing'))), qr/pipeline "nothing" does not exist/, 'no such pipeline');
like(error(q(BEGIN READ ONLY; SELECT postpipe_create_group('main'))), qr/read-only transaction/, 'not in a read-only transaction');
$redis->command('XGROUP', 'DESTROY', $stream, $group);
$redis->command('XADD', $stream, '1-1', n => 1);
is(sql(q(SELECT postpipe_create_group('main', '$'))), 't', 'at the end of the stream');
is({ @{ $redis->command('XINFO', 'GROUPS', $stream)->[0] } }->{'last-delivered-id'}, '1-1', '... which is where it begins');

# --- Who is there.
resume();
wait_for { consumers($redis, $stream, $group) == 2 } 'two consumers';
$redis->command('XADD', $stream, "2-$_", n => $_) for 1 .. 20;
wait_for { sql('SELECT count(*) FROM main') == 20 && pending($redis, $stream, $group) == 0 } 'both workers together apply each entry once';
pause();
read_as('python-1', 3);
$redis->command('XGROUP', 'CREATECONSUMER', $stream, $group, "caf\xC3\xA9");
$redis->command('XGROUP', 'CREATECONSUMER', $stream, $group, "bad\xFF\x00\\");
$redis->command('XGROUP', 'CREATECONSUMER', $stream, $group, $own);
resume();
my $pids = sql(q(SELECT string_agg(format('%s|%s', consumer, pid), ' ' ORDER BY consumer) FROM postpipe_workers WHERE consumer IS NOT NULL));
is(sql(q(SELECT string_agg(format('%s|%s', consumer, pid), ' ' ORDER BY consumer) FROM postpipe_consumers('main') WHERE ours)), $pids, 'ours, with their processes');
is(sql(q(SELECT consumer, pending, pid IS NULL, idle_seconds BETWEEN 0 AND 60, inactive_seconds IS NULL FROM postpipe_consumers('main') WHERE NOT ours ORDER BY consumer)),
	join("\n", 'bad\xFF\x00\\|0|t|t|t', "caf\xC3\xA9|0|t|t|t", 'python-1|3|t|t|t'), 'and foreign ones; Redis 7.0 does not tell inactive_seconds')
  if $redis->cli('INFO', 'server') =~ /redis_version:(6\.2|7\.0)/;
is(sql(q(SELECT inactive_seconds BETWEEN 0 AND 60 FROM postpipe_consumers('main') WHERE consumer = 'python-1')), 't', 'Redis 7.2 tells inactive_seconds')
  unless $redis->cli('INFO', 'server') =~ /redis_version:(6\.2|7\.0)/;

# --- What is pending: all pages, and what the ledger knows.
is(sql(q(SELECT string_agg(format('%s %s %s', id, delivery_count, in_ledger), ', ') FROM postpipe_pending('main') WHERE consumer = 'python-1')),
	'3-1 1 f, 3-2 1 f, 3-3 1 f', 'what is pending');
pause();
read_as('python-2', 2500);
is(sql(q(SELECT count(*), count(DISTINCT id), min(id), bool_or(in_ledger) FROM postpipe_pending('main', 3000))), '2503|2503|3-1|f', 'more than a page of it');
is(sql(q(SELECT count(*) FROM postpipe_pending('main'))), 100, '... 100 by default');
is(sql(q(SELECT count(*), max(id) FROM postpipe_pending('main', 1001))), '1001|4-998', '... or as many as are asked for');
like(error(q(SELECT * FROM postpipe_pending('main', 0))), qr/max_entries must be greater than zero/, 'but not none');
is(sql(q(BEGIN READ ONLY; SELECT count(*) FROM postpipe_pending('main', 10); COMMIT)), 10, 'it only reads');
# What was pruned from the ledger is settled, but for the holes.
sql(q(INSERT INTO postpipe_progress (pipeline, pruned_id, pruned_epoch, holes) VALUES ('main', '4-2', 1, '{3-2,4-1}')
	ON CONFLICT (pipeline) DO UPDATE SET pruned_id = excluded.pruned_id, pruned_epoch = excluded.pruned_epoch, holes = excluded.holes));
is(sql(q(SELECT string_agg(format('%s %s', id, in_ledger), ', ') FROM postpipe_pending('main', 6))), '3-1 t, 3-2 f, 3-3 t, 4-1 f, 4-2 t, 4-3 f', 'what was pruned is on record');
sql(q(UPDATE postpipe_progress SET pruned_id = NULL, pruned_epoch = NULL, holes = '{}'));
resume();

# --- 298 leaked consumers go in one call; not those with entries, not ours, not those that were there a moment ago.
$redis->pipeline(map { [ 'XGROUP', 'CREATECONSUMER', $stream, $group, "leaked-$_" ] } 1 .. 298);
$redis->pipeline(map { [ 'XGROUP', 'CREATECONSUMER', $stream, $group, $_ ] } "postpipe:$system:$database:gone:1", "postpipe:$system:$database:main:3");
my $all = consumers($redis, $stream, $group);
is(sql(q(SELECT count(*), count(*) FILTER (WHERE reaped) FROM postpipe_reap_consumers('main'))), '304|0', 'within min_idle, an hour by default, none goes');
is(sql(q(SELECT count(*), count(*) FILTER (WHERE reaped) FROM postpipe_reap_consumers('main', '0', dry_run => true))), '304|302', 'a dry run tells which would go');
is(consumers($redis, $stream, $group), $all, '... and deletes none');
# Between the look and the deed one of them gets an entry.
pause();
read_as('leaked-7', 1);
resume();
is(sql(q(SELECT string_agg(consumer, ' ' ORDER BY consumer) FROM postpipe_reap_consumers('main', '0') WHERE NOT reaped)), 'leaked-7 python-1 python-2',
	'one that got an entry meanwhile stays, as do the others with entries');
is(sql(q(SELECT string_agg(format('%s %s', consumer, pending), ', ' ORDER BY consumer) FROM postpipe_consumers('main') WHERE NOT ours)),
	'leaked-7 1, python-1 3, python-2 2500', 'all others are gone');
is(sql(q(SELECT count(*), count(pid) FROM postpipe_consumers('main') WHERE ours)), '2|2', '... of ours, those without a worker');
$redis->command('XGROUP', 'CREATECONSUMER', $stream, $group, $_) for qw(a b);
is(sql(q(SELECT consumer, pending, reaped FROM postpipe_reap_consumers('main', '0', 'a'))), 'a|0|t', 'one by its name');
is(sql(q(SELECT consumer, pending, reaped FROM postpipe_reap_consumers('main', '0', 'python-1'))), 'python-1|3|f', '... not one with entries');
is(sql("SELECT reaped FROM postpipe_reap_consumers('main', '0', '$own')"), 'f', '... nor our own');
is(sql(q(SELECT count(*) FROM postpipe_reap_consumers('main', '0', 'nobody'))), 0, '... nor one that is not there');
is(sql(q(SELECT string_agg(consumer, ' ') FROM postpipe_reap_consumers('main', '0') WHERE reaped)), 'b', 'and the rest');
like(error(q(SELECT * FROM postpipe_reap_consumers('main', '-1s'))), qr/min_idle must not be negative/, 'a negative min_idle');

# --- Atomically: while consumers come and read, no entry that was delivered is lost to a deletion.
{
	pause();
	my $before = pending($redis, $stream, $group);
	my $reader = fork // die "fork: $!";
	if ($reader == 0)
	{
		my $client = Postpipe::Test::Client->new($redis->port);
		for my $n (1 .. 3000)
		{
			# Half of them come after the first call, however long it takes.
			1 until $n != 1500 || $client->command('EXISTS', 'called');
			$client->command('XADD', $stream, "6-$n", n => $n);
			$client->command('XGROUP', 'CREATECONSUMER', $stream, $group, "racer-$n");
			$client->command('XREADGROUP', 'GROUP', $group, "racer-$n", 'COUNT', 1, 'STREAMS', $stream, '>');
			$client->command('XGROUP', 'CREATECONSUMER', $stream, $group, "empty-$n");
		}
		POSIX::_exit(0);
	}
	my ($reaped, $calls) = (0, 0);
	while (waitpid($reader, POSIX::WNOHANG()) == 0)
	{
		$reaped += sql(q(SELECT count(*) FILTER (WHERE reaped) FROM postpipe_reap_consumers('main', '0')));
		$calls++;
		$redis->command('SET', 'called', 1);
	}
	cmp_ok($calls, '>', 1, "consumers were deleted ($reaped, in $calls calls) while others read");
	cmp_ok($reaped, '>', 0, '... some');
	is(pending($redis, $stream, $group), $before + 3000, 'every entry that was delivered is still pending');
	is(sql(q(SELECT count(*) FROM postpipe_consumers('main') WHERE consumer LIKE 'racer-%' AND pending = 1)), 3000, '... for who received it');
	$redis->command('XGROUP', 'DESTROY', $stream, $group);
	sql(q(SELECT postpipe_create_group('main', '$')));
}

# --- A definition that comes from another server leaves the group there alone.
sql(q(UPDATE postpipe_pipeline SET system_identifier = 1 WHERE pipeline = 'main'));
like(error("SELECT * FROM $_"), qr/comes from another server.*take_over => true/s, "$_ of a disarmed pipeline") for q(postpipe_claim('main')), q(postpipe_reap_consumers('main'));
sql(q(UPDATE postpipe_pipeline SET system_identifier = (SELECT system_identifier FROM pg_control_system()) WHERE pipeline = 'main'));

# --- By itself, when asked for: the worker looks when it starts, and then once a minute.
{
	$redis->command('XGROUP', 'CREATE', 'stream:auto', 'auto', '0', 'MKSTREAM');
	$redis->pipeline(map { [ 'XGROUP', 'CREATECONSUMER', 'stream:auto', 'auto', "leaked-$_" ] } 1 .. 1010);
	$redis->command('XADD', 'stream:auto', '*', n => 1);
	$redis->command('XREADGROUP', 'GROUP', 'auto', 'leaked-1', 'STREAMS', 'stream:auto', '>');
	sql(q(SELECT postpipe_create_pipeline('auto', 'stream:auto', statement => 'SELECT FROM postpipe_batch', consumer_group => 'auto', options => '{"reap_consumers": "1 hour"}')));
	wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'auto'), 'idle', 'a pipeline that is asked to');
	is(consumers($redis, 'stream:auto', 'auto'), 1011, 'deletes none that was there within the hour');
	sql(q(SELECT postpipe_drop_pipeline('auto')));
	sql(q(SELECT postpipe_create_pipeline('auto', 'stream:auto', statement => 'SELECT FROM postpipe_batch', consumer_group => 'auto', options => '{"reap_consumers": "0s"}')));
	wait_for { consumers($redis, 'stream:auto', 'auto') == 11 } 'and else those that nobody uses, a thousand at a time';
	is(pending($redis, 'stream:auto', 'auto'), 1, '... not the one with an entry');
	sql(q(SELECT postpipe_drop_pipeline('auto')));
}

# --- What a worker deletes itself was not deleted by somebody. It looks once a minute, and when settings may have changed.
{
	my $n = 0;
	my $read = sub {
		$redis->command('XADD', 'stream:tidy', '*', n => ++$n);
		return wait_sql($node, 'postgres', q(SELECT entries_applied FROM postpipe_stats WHERE pipeline = 'tidy'), $n, "$_[0] reads, $n");
	};
	sql(q(SELECT postpipe_create_pipeline('tidy', 'stream:tidy', statement => 'SELECT FROM postpipe_batch', options => '{"reap_consumers": "0s"}')));
	wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'tidy'), 'idle', 'a pipeline that deletes consumers');
	# Who reads new entries has looked at the consumers before.
	$read->('who has looked for the first time');
	$redis->command('XGROUP', 'CREATECONSUMER', 'stream:tidy', 'postpipe_tidy', "postpipe:$system:$database:tidy:2");
	# The read that finds it there is the second one at the latest, and what comes with that is read again before the third.
	$read->('who sees another consumer') for 1 .. 3;
	is(consumers($redis, 'stream:tidy', 'postpipe_tidy'), 2, 'the consumer of a worker that is not wanted any more is there still');
	$node->reload;
	wait_for { consumers($redis, 'stream:tidy', 'postpipe_tidy') == 1 } '... and goes after a reload', 30;
	$read->('the one that is left');
	wait_for { pending($redis, 'stream:tidy', 'postpipe_tidy') == 0 } '... and acknowledges';
	is(scalar log_lines($node, qr/"tidy".*deleted 1 consumers that nobody uses/), 1, '... and has said that it has deleted it');
	is(scalar log_lines($node, qr/"tidy".*deleted by somebody/), 0, '... and does not look for who has done it');
	sql(q(SELECT postpipe_drop_pipeline('tidy')));
}

# --- Names that begin as those of the workers of a pipeline do, and that no worker has.
for my $odd ('x', '01', '1x', '0', '-1', '1:1')
{
	my $name = "postpipe:$system:$database:odd:$odd";
	$redis->command('XGROUP', 'CREATE', 'stream:odd', 'odd', '0', 'MKSTREAM');
	$redis->command('XADD', 'stream:odd', '1-1', n => 1);
	$redis->command('XREADGROUP', 'GROUP', 'odd', $name, 'STREAMS', 'stream:odd', '>');
	sql(q(CREATE TABLE odd (entry text); SELECT postpipe_create_pipeline('odd', 'stream:odd', workers => 2, consumer_group => 'odd', statement => 'INSERT INTO odd SELECT id FROM postpipe_batch')));
	wait_sql($node, 'postgres', 'SELECT entry FROM odd', '1-1', "what is pending for $odd is applied");
	$redis->command('XADD', 'stream:odd', '2-1', n => 2);
	wait_sql($node, 'postgres', q(SELECT count(*) FROM odd, postpipe_stats WHERE pipeline = 'odd' AND state = 'idle'), 2, '... and the pipeline goes on');
	sql(q(SELECT postpipe_drop_pipeline('odd'); DROP TABLE odd));
	$redis->command('DEL', 'stream:odd');
}

# --- The highest ID that there can be is an entry's, pending for another one when the pipeline begins: nothing comes after it.
{
	my $max = '18446744073709551615-18446744073709551615';
	$redis->command('XGROUP', 'CREATE', 'stream:max', 'max', '0', 'MKSTREAM');
	$redis->command('XADD', 'stream:max', $_, n => 1) for '5-5', $max;
	$redis->command('XREADGROUP', 'GROUP', 'max', 'python', 'STREAMS', 'stream:max', '>');
	sql(q(CREATE TABLE max (entry text); SELECT postpipe_create_pipeline('max', 'stream:max', consumer_group => 'max', options => '{"batch_size": 1, "claim_foreign": true, "claim_idle": "1s"}',
		statement => 'INSERT INTO max SELECT id FROM postpipe_batch')));
	wait_sql($node, 'postgres', q(SELECT string_agg(entry, ' ' ORDER BY entry COLLATE "C" DESC) FROM max), "5-5 $max", 'what is pending at the highest ID is claimed and applied');
	wait_for { pending($redis, 'stream:max', 'max') == 0 } '... and acknowledged';
	is(sql(q(SELECT string_agg(id::text, ' ' ORDER BY id) FROM postpipe_peek('max'))), "5-5 $max", 'a peek ends there');
	is(sql(q(SELECT entries, deduplicated FROM postpipe_backfill('max'))), '2|2', '... so does a backfill');
	is(sql("SELECT entries FROM postpipe_backfill('max', '($max')"), '0', '... also of what comes after it');
	is((as('postgres', q(SELECT count(*) FROM postpipe_test('max', from_id => '-'))))[1], '', '... and a test');
	pause('max');
	is(sql(qq(SELECT postpipe_rewind('max', '$max'))), 0, 'a rewind to it');
	is(sql(q(SELECT postpipe_rewind('max', '5-5'))), 1, '... or to what is before it');
	sql(q(SELECT postpipe_resume('max')));
	wait_sql($node, 'postgres', q(SELECT string_agg(entry, ' ' ORDER BY entry COLLATE "C" DESC) FROM max), "5-5 $max $max", 'it is applied again');
	sql(q(SELECT postpipe_drop_pipeline('max')));
}

# --- Who may: members of the pipeline's owner, with EXECUTE.
sql(q(CREATE ROLE app LOGIN; CREATE ROLE member LOGIN IN ROLE app; CREATE ROLE stranger LOGIN; CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
	GRANT CREATE ON SCHEMA public TO app;
	GRANT EXECUTE ON FUNCTION postpipe_create_pipeline, postpipe_consumers, postpipe_pending, postpipe_create_group, postpipe_claim, postpipe_reap_consumers TO app, stranger;
	INSERT INTO postpipe_lost_range VALUES ('main', 1, '1-1', '1-9', 9, 'trimmed')));
as('app', q(SELECT postpipe_create_pipeline('his', 'stream:his', statement => 'SELECT FROM postpipe_batch', enabled => false)));
for my $call (q(postpipe_create_group('his')), q(postpipe_consumers('his')), q(postpipe_pending('his')), q(postpipe_claim('his')), q(postpipe_reap_consumers('his', '0')))
{
	is((as('stranger', "SELECT count(*) FROM $call"))[1] =~ /must be a member of role "app" to manage pipeline "his"/, 1, "$call is not for strangers");
	is((as('monitor', "SELECT count(*) FROM $call"))[1] =~ /permission denied for function/, 1, '... nor for pg_monitor');
	is((as($_, "SELECT count(*) FROM $call"))[1], '', "... but for $_") for qw(app member);
}
is((as('monitor', 'SELECT * FROM postpipe_lost'))[0] =~ /^main\|1\|1-1\|1-9\|9\|trimmed\|/, 1, 'pg_monitor reads postpipe_lost');
is((as('app', 'SELECT * FROM postpipe_lost'))[1] =~ /permission denied for view postpipe_lost/, 1, '... others do not');

pp_balanced($node);
$node->stop('fast');
done_testing();

# What a role gets: output and errors.
sub as
{
	my ($role, $query) = @_;
	my (undef, $out, $err) = $node->psql('postgres', $query, extra_params => [ '-U', $role ]);
	return ($out, $err);
}

sub make
{
	my ($name, %opt) = @_;
	my $more = join '', map { ", $_ => '$opt{$_}'" } sort keys %opt;
	return sql("CREATE TABLE $name (entry text); SELECT postpipe_create_pipeline('$name', '$stream', consumer_group => '$group',
		statement => 'INSERT INTO $name SELECT id FROM postpipe_batch'$more)");
}

sub pause
{
	my $name = $_[0] // 'main';
	sql("SELECT postpipe_pause('$name')");
	return wait_sql($node, 'postgres', "SELECT state FROM postpipe_stats WHERE pipeline = '$name'", 'paused', "$name is paused");
}

sub resume
{
	sql(q(SELECT postpipe_resume('main')));
	wait_sql($node, 'postgres', q(SELECT string_agg(DISTINCT state, ' ') FROM postpipe_workers WHERE pipeline = 'main' HAVING count(*) = 2), 'idle', 'main runs');
	return;
}

# Adds entries ms-1 … ms-n, with the next ms, which this consumer receives: in one step, because Redis may not have noticed
# yet that a worker has gone that waited for them.
my $ms;
sub read_as
{
	my ($consumer, $n) = @_;
	$ms = ($ms // 2) + 1;
	return $redis->transaction((map { [ 'XADD', $stream, "$ms-$_", 'n', $_ ] } 1 .. $n),
		[ 'XREADGROUP', 'GROUP', $group, $consumer, 'COUNT', $n, 'STREAMS', $stream, '>' ]);
}
