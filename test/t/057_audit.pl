# The audit where a number cannot be told: balance is NULL, with the reason, and never wrong; and back to 0 when it can be told.
# TAP, because Redis goes away and a group has other consumers.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('audit', redis => $redis);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
my $has_counts = $redis->cli('INFO', 'server') !~ /redis_version:6/;

# --- Redis is away: what is in the tables is shown, the rest is not known.
make('away');
add('away', 10);
settled('away', 10);
shows('away', '10|10|0|0|0', qr/^$/, 'all is told');
$redis->stop;
shows('away', '|10|||', qr/^Redis does not tell the numbers that are needed/, 'Redis is away');
$redis->start;
shows('away', '10|10|0|0|0', qr/^$/, 'it is back');
is(sql('SELECT count(*) FROM postpipe_audit'), 1, '... with the stream that it had') or diag(join "\n", log_lines($node, qr/epoch/));

# --- An epoch that has ended.
sql(q(SELECT postpipe_pause('away'); SELECT postpipe_wait_state('away', 'paused')));
my (undef, undef, $notice) = $node->psql('postgres', q(SELECT postpipe_rewind('away')));
like($notice, qr/^psql:<stdin>:1: NOTICE:  entries after 0-0 will be applied again, in epoch 2 of the pipeline; now there are 10 of them$/, 'a rewind says what it does');
is(scalar log_lines($node, qr/LOG:.*"away": rewound to 0-0 by "postgres": epoch 2 begins/), 1, '... in the log as well');
sql(q(SELECT postpipe_resume('away')));
settled('away', 20);
shows('away', '10|10|0|0|0', qr/^$/, 'a rewind: the new epoch');
is(sql(q(SELECT applied, balance IS NULL, exact, reason FROM postpipe_audit WHERE pipeline = 'away' AND epoch = 1)),
	'10|t|f|an epoch that has ended is not measured any more', '... the one that has ended');

is(sql(q(SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch WHERE pipeline = 'away')), 'first rewind', '... and no third one');

# --- How many entries are lost is not known.
sql(q(INSERT INTO postpipe_lost_range (pipeline, epoch, first_id, last_id, entries, cause) SELECT 'away', max(epoch), '0-1', '0-2', NULL, 'trimmed_before_read' FROM postpipe_epoch WHERE pipeline = 'away'));
shows('away', '10|10|0|0|', qr/^how many entries are lost could not be determined/, 'an unknown number is lost');
is(sql(q(SELECT count(*) FROM postpipe_audit WHERE pipeline = 'away' AND lost IS NULL)), 1, '... and is no number in the audit');
sql(q(DELETE FROM postpipe_lost_range));

# --- A group that was made in the middle of a stream, with unread entries deleted, so that Redis tells no lag: what it begins
# with is counted. Where that is refused it cannot be told.
my @ids = add('middle', 10);
$redis->command('XGROUP', 'CREATE', 'stream:middle', 'middle', $ids[2]);
$redis->command('XDEL', 'stream:middle', $ids[5]);
make('middle');
settled('middle', 6);
shows('middle', '6|6|0|0|0', qr/^$/, 'what a group from mid-stream begins with is counted');
sql(q(UPDATE postpipe_epoch SET base_added = NULL WHERE pipeline = 'middle'));
shows('middle', '|6|0|0|', qr/^how many entries the epoch began with could not be determined/, 'a group from mid-stream');

# --- Another consumer acknowledges.
make('shared');
add('shared', 5);
settled('shared', 5);
shows('shared', '5|5|0|0|0', qr/^$/, 'alone');
$redis->transaction((map { [ 'XADD', 'stream:shared', '*', 'v', "other $_" ] } 1 .. 3), [ 'XREADGROUP', 'GROUP', 'shared', 'python', 'COUNT', 3, 'STREAMS', 'stream:shared', '>' ]);
shows('shared', '8|5|3|0|0', qr/^$/, 'another one has three entries in hand: they are pending');
$redis->command('XACK', 'stream:shared', 'shared', map { $_->[0] } @{ $redis->command('XPENDING', 'stream:shared', 'shared', '-', '+', 10) });
shows('shared', '8|5|0|0|', qr/^the group has other consumers, and what they acknowledge is not counted here/, '... and acknowledges them');

# --- Nobody looks while stream and group change: what is missing or too much may have a reason that is not known yet.
my %change = (
	set_back => sub { [ 'XGROUP', 'SETID', $_[0], $_[1], '0' ] },
	set_forward => sub { [ 'XGROUP', 'SETID', $_[0], $_[1], '$' ] },
	trimmed => sub { [ 'XTRIM', $_[0], 'MAXLEN', 0 ] },
	noack => sub { [ 'XREADGROUP', 'GROUP', $_[1], 'python', 'NOACK', 'STREAMS', $_[0], '>' ] },
	counted => sub { [ 'XSETID', $_[0], '9999999999999-0', 'ENTRIESADDED', 100, 'MAXDELETEDID', '0-1' ] },
	deleted => sub { [ 'DEL', $_[0] ] });
for my $change (sort keys %change)
{
	make($change);
	add($change, 10);
	settled($change, 10);
	shows($change, '10|10|0|0|0', qr/^$/, 'before');
	sql("SELECT postpipe_pause('$change'); SELECT postpipe_wait_state('$change', 'paused')");
	wait_for { $redis->cli('CLIENT', 'LIST') !~ /name=postpipe:\d+:\d+:$change:1 / } "$change: nobody reads";
	add($change, 5);
	shows($change, '15|10|0|5|0', qr/^$/, 'paused');
	$redis->command(@{ $change{$change}->("stream:$change", $change) });
	my $why = $change =~ /^(?:deleted|counted)$/ ? qr/^Redis does not tell/ : qr/^stream or group have changed since a worker/;
	wait_for { sql("SELECT balance IS NULL, exact, reason FROM postpipe_audit WHERE pipeline = '$change'") =~ /^t\|f\|(.*)/ && $1 =~ $why } "$change: there is no balance, and it says why";
	next if $change eq 'counted' || $change eq 'noack';
	sql("SELECT postpipe_resume('$change')");
	add($change, 1);
	wait_sql($node, 'postgres', "SELECT balance FROM postpipe_audit WHERE pipeline = '$change' ORDER BY epoch DESC LIMIT 1", 0, '... until somebody looks');
}

# --- The group is set back, and what it delivers again waits for a lock, while other workers look at the stream.
for my $workers (1, 2, 4)
{
	my $p = "again_$workers";
	make($p, $workers);
	add($p, 50);
	settled($p, 50);
	shows($p, '50|50|0|0|0', qr/^$/, 'before');
	my $session = pp_session($node);
	$session->("BEGIN; LOCK TABLE $p");
	$redis->pipeline([ 'XGROUP', 'SETID', "stream:$p", $p, '0' ], [ 'XADD', "stream:$p", '*', 'v', 'extra' ]);
	wait_for { pending($redis, "stream:$p", $p) == 51 } "$p: all are delivered again";
	my %seen;
	wait_for { my ($at, $balance) = split /\|/, sql("SELECT measured_at, balance FROM postpipe_audit WHERE pipeline = '$p'"); $seen{$at} = $balance; keys %seen == 6 } '... and measured';
	is(join(' ', grep { $_ ne '' && $_ != 0 } map { $_ // '' } values %seen), '', '... with no balance that is wrong');
	$session->('COMMIT');
	$session->(undef);
	settled($p, 51);
	shows($p, '51|51|0|0|0', qr/^$/, 'when they are looked up');
}

$node->restart;
wait_sql($node, 'postgres', q(SELECT count(*) FROM postpipe_stats WHERE measured_at IS NULL), 0, 'measured again');
is(sql(q(SELECT count(*) FROM postpipe_audit WHERE balance <> 0)), 0, 'no balance is wrong');
$node->stop;
done_testing();

sub make
{
	my ($name, $workers) = (@_, 1);
	return sql("CREATE TABLE $name (id text); SELECT postpipe_create_pipeline('$name', 'stream:$name', consumer_group => '$name', workers => $workers, statement => 'INSERT INTO $name SELECT id FROM postpipe_batch')");
}

sub add { my ($name, $n) = @_; return $redis->pipeline(map { [ 'XADD', "stream:$name", '*', 'v', "v$_" ] } 1 .. $n) }

sub settled
{
	my ($name, $n) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_sql($node, 'postgres', "SELECT count(*) FROM $name", $n, "$name: $n rows");
}

# added, applied, pending, lag and balance of the current epoch; Redis 6.2 does not tell how many were added.
sub shows
{
	my ($name, $numbers, $reason, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return unless $has_counts;
	wait_sql($node, 'postgres', "SELECT added, applied, pending, lag, balance FROM postpipe_audit WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1", $numbers, "$name: $what");
	return wait_for { sql("SELECT coalesce(reason, '') FROM postpipe_audit WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1") =~ $reason } '... and says why';
}
