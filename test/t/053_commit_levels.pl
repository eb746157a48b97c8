# Each level of synchronous_commit, of the workers and of a claim by hand: no XACK before what the level promises.
# TAP, because it needs a synchronous standby whose replay is paused and which goes away.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(definition);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('levels', redis => $redis, allows_streaming => 1);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
my @levels = qw(remote_apply on remote_write local off);
make($_) for @levels;
make('default');
acknowledged($_, 1, "$_: before there is a standby") for @levels;

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
wait_sql($node, 'postgres', 'SELECT state FROM pg_stat_replication', 'streaming', 'a standby');
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'standby'");
$node->reload;
wait_sql($node, 'postgres', 'SHOW synchronous_standby_names', 'standby', '... that is waited for');

# --- The standby has WAL, and does not apply it: remote_apply alone waits for that.
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_pause()');
wait_sql($standby, 'postgres', 'SELECT pg_get_wal_replay_pause_state()', 'paused', 'it pauses its replay');
add('remote_apply', 5);
waits('remote_apply', 'remote_apply waits for the replay');
acknowledged($_, 6, "$_ does not") for @levels[ 1 .. 4 ];
is(unacknowledged('remote_apply'), 5, '... of which nothing is acknowledged');
is($standby->safe_psql('postgres', 'SELECT count(*) FROM remote_apply'), 1, '... and not seen there');
$standby->safe_psql('postgres', 'SELECT pg_wal_replay_resume()');
wait_for { unacknowledged('remote_apply') == 0 } 'the replay goes on: acknowledged';
is($standby->safe_psql('postgres', 'SELECT count(*) FROM remote_apply'), 6, '... and seen there');

# --- The standby is away: what is local waits for nobody, all others do.
$standby->stop('immediate');
add($_, 5) for @levels;
waits($_, "$_ waits for the standby") for @levels[ 0 .. 2 ];
acknowledged($_, 11, "$_ does not") for @levels[ 3 .. 4 ];
is(unacknowledged($_), 5, "... nothing of $_ is acknowledged") for @levels[ 0 .. 2 ];

# --- A claim by hand finds entries that are gone: its XACK passes the same barrier, whatever the session has set.
my @gone = gone('default', 3);
for my $level (qw(off local))
{
	my $done = pp_start($node, "SET synchronous_commit = $level", q(SELECT postpipe_claim('default', 'python-1', '0')));
	my $pid = wait_claim("with synchronous_commit = $level a claim waits for the standby");
	is(unacknowledged('default'), 3, '... and nothing is acknowledged');
	async("SELECT pg_cancel_backend($pid)");
	like($done->(), qr/canceling wait for synchronous replication/, 'the wait is cancelled');
	is(async(q(SELECT count(*) FROM postpipe_lost)), 3, '... what is gone is on record, once');
	is(unacknowledged('default'), 3, '... and not acknowledged');
}
# One with a level of its own waits for less.
gone('local', 1);
is(sql(q(SET synchronous_commit = off; SELECT postpipe_claim('local', 'python-1', '0'))), 0, 'a pipeline with the level local: its claim does not wait');
wait_for { unacknowledged('local') == 0 } '... and acknowledges';
# A session may want more.
gone('local', 1);
my $done = pp_start($node, 'SET synchronous_commit = on', q(SELECT postpipe_claim('local', 'python-1', '0')));
wait_claim('a session that wants more waits for it');
is(unacknowledged('local'), 1, '... with the XACK');

$standby->start;
$done->();
wait_for { unacknowledged($_) == 0 } "the standby is back: $_ is acknowledged" for @levels;
is(sql(q(SET synchronous_commit = off; SELECT postpipe_claim('default', 'python-1', '0'))), 0, 'the claim again');
wait_for { unacknowledged('default') == 0 } '... acknowledges what is on record';
is(sql(q(SELECT string_agg(first_id::text, ' ' ORDER BY first_id) FROM postpipe_lost WHERE pipeline = 'default')), "@gone", '... once');
pp_balanced($node);
$node->stop;
$standby->stop;
done_testing();

# A commit of the session that asks must not wait as well.
sub async { my ($query) = @_; return sql("SET synchronous_commit = off; $query") }

sub make
{
	my ($name) = @_;
	my $options = $name eq 'default' ? '{}' : qq({"synchronous_commit": "$name"});
	sql(qq(CREATE TABLE "$name" (v text); ) . definition($name, statement => qq(INSERT INTO "$name" SELECT id FROM postpipe_batch), options => $options));
	return add($name, 1);
}

sub add { my ($name, $n) = @_; return $redis->pipeline(map { [ 'XADD', "stream:$name", '*', 'n', $_ ] } 1 .. $n) }
sub unacknowledged { my ($name) = @_; return Postpipe::Test::pending($redis, "stream:$name", "postpipe_$name") }

sub acknowledged
{
	my ($name, $n, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	add($name, 5) if $n == 6;
	return wait_for { async("SELECT count(*) FROM \"$name\"") == $n && unacknowledged($name) == 0 } $what;
}

sub waits
{
	my ($name, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres',
		"SELECT wait_event FROM pg_stat_activity JOIN postpipe_workers w USING (pid) WHERE w.pipeline = '$name'", 'SyncRep', $what);
}

# Entries that are pending for a consumer of somebody else, and deleted.
sub gone
{
	my ($name, $n) = @_;
	my @replies = $redis->transaction((map { [ 'XADD', "stream:$name", '*', 'n', $_ ] } 1 .. $n),
		[ 'XREADGROUP', 'GROUP', "postpipe_$name", 'python-1', 'COUNT', $n, 'STREAMS', "stream:$name", '>' ]);
	my @ids = @replies[ 0 .. $n - 1 ];
	$redis->command('XDEL', "stream:$name", @ids);
	return @ids;
}

sub wait_claim
{
	my ($what) = @_;
	my $query = q(FROM pg_stat_activity WHERE query LIKE 'SELECT postpipe_claim%' AND wait_event = 'SyncRep');
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', "SELECT count(*) $query", 1, $what);
	return async("SELECT pid $query");
}
