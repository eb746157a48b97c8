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
sql(q(SELECT postpipe_pause('away'); SELECT postpipe_wait_state('away', 'paused'); SELECT postpipe_rewind('away'); SELECT postpipe_resume('away')));
settled('away', 20);
shows('away', '10|10|0|0|0', qr/^$/, 'a rewind: the new epoch');
is(sql(q(SELECT applied, balance IS NULL, exact, reason FROM postpipe_audit WHERE pipeline = 'away' AND epoch = 1)),
	'10|t|f|an epoch that has ended is not measured any more', '... the one that has ended');

is(sql(q(SELECT string_agg(cause, ' ' ORDER BY epoch) FROM postpipe_epoch WHERE pipeline = 'away')), 'first rewind', '... and no third one');

# --- How many entries are lost is not known.
sql(q(INSERT INTO postpipe_lost_range (pipeline, epoch, first_id, last_id, entries, cause) SELECT 'away', max(epoch), '0-1', '0-2', NULL, 'trimmed_before_read' FROM postpipe_epoch WHERE pipeline = 'away'));
shows('away', '10|10|0|0|', qr/^how many entries are lost could not be determined/, 'an unknown number is lost');
sql(q(DELETE FROM postpipe_lost_range));

# --- A group that was made in the middle of a stream, with unread entries deleted: what it begins with cannot be told.
my @ids = add('middle', 10);
$redis->command('XGROUP', 'CREATE', 'stream:middle', 'middle', $ids[2]);
$redis->command('XDEL', 'stream:middle', $ids[5]);
make('middle');
settled('middle', 6);
shows('middle', '|6|0|0|', qr/^how many entries the epoch began with could not be determined/, 'a group from mid-stream');

# --- Another consumer acknowledges.
make('shared');
add('shared', 5);
settled('shared', 5);
shows('shared', '5|5|0|0|0', qr/^$/, 'alone');
$redis->pipeline(['MULTI'], (map { [ 'XADD', 'stream:shared', '*', 'v', "other $_" ] } 1 .. 3), [ 'XREADGROUP', 'GROUP', 'shared', 'python', 'COUNT', 3, 'STREAMS', 'stream:shared', '>' ], ['EXEC']);
shows('shared', '8|5|3|0|0', qr/^$/, 'another one has three entries in hand: they are pending');
$redis->command('XACK', 'stream:shared', 'shared', map { $_->[0] } @{ $redis->command('XPENDING', 'stream:shared', 'shared', '-', '+', 10) });
shows('shared', '8|5|0|0|', qr/^the group has other consumers, and what they acknowledge is not counted here/, '... and acknowledges them');
is(sql(q(SELECT count(*) FROM postpipe_audit WHERE balance <> 0)), 0, 'no balance is wrong');
$node->stop;
done_testing();

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query) }

sub make
{
	my ($name) = @_;
	return sql("CREATE TABLE $name (id text); SELECT postpipe_create_pipeline('$name', 'stream:$name', consumer_group => '$name', statement => 'INSERT INTO $name SELECT id FROM postpipe_batch')");
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
	return like(sql("SELECT coalesce(reason, '') FROM postpipe_audit WHERE pipeline = '$name' ORDER BY epoch DESC LIMIT 1"), $reason, '... and says why');
}
