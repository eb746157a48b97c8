# Redis is killed and loads its append-only file, which it had rewritten once, while a group has entries to read. Redis
# 7.0 then tells the entries-read of the rewrite, too small, and so a lag that is too large: nothing may be taken as lost
# for that. TAP, because Redis has to be killed and started again.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new(keep => 1);
my $node = pp_node('main', redis => $redis);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $redis);

$hits->publish(300);
$hits->settled('before');
rewrite(2);
$hits->publish(200);
$hits->settled('more');
$hits->sql(q(SELECT postpipe_pause('hits')));
is($hits->sql(q(SELECT postpipe_wait_state('hits', 'paused'))), 't', 'paused');
$hits->publish(100);
$redis->kill9;
$redis->start;
wait_for { $redis->command('PING') } 'Redis answers';
my ($groups) = $redis->pipeline([ 'XINFO', 'GROUPS', $hits->stream ]);
my %group = @{ $groups->[0] };
note('what Redis tells: entries-read ', $group{'entries-read'} // 'nil', ', lag ', $group{lag} // 'nil', '; it is 500 and 100');
$hits->sql(q(SELECT postpipe_resume('hits')));
$hits->settled('after');
$hits->publish(10);
$hits->settled('at the end');

# A pipeline that begins in such a group, with nobody's entries pending: what the group has read is counted.
my $stream = 'stream:adopted';
$redis->command('XGROUP', 'CREATE', $stream, 'g', '0', 'MKSTREAM');
$redis->pipeline(map { [ 'XADD', $stream, '*', 'id', $_ ] } 1 .. 10);
read_as_python(4);
rewrite(3);
read_as_python(3);
$redis->command('XGROUP', 'DELCONSUMER', $stream, 'g', 'python');
$redis->kill9;
$redis->start;
wait_for { $redis->command('PING') } 'Redis answers again';
$hits->sql('CREATE TABLE adopted (id int)');
$hits->sql(q(SELECT postpipe_create_pipeline('adopted', 'stream:adopted', target => 'adopted', consumer_group => 'g')));
wait_sql($node, 'postgres', q(SELECT applied, lost, pending, lag, balance, reason FROM postpipe_audit WHERE pipeline = 'adopted'), '3|0|0|0|0|', 'what the group had read was counted, nothing is lost');
is($hits->sql('SELECT string_agg(id::text, $$ $$ ORDER BY id) FROM adopted'), '8 9 10', '... and the others are applied');

# While it stands amid its stream, what Redis tells of the lag is not believed.
$hits->sql('CREATE TABLE slow (id int CHECK (id <> 6))');
$stream = 'stream:slow';
$hits->sql(q(SELECT postpipe_create_pipeline('slow', 'stream:slow', target => 'slow', consumer_group => 'g', options => '{"batch_size": 1}')));
$redis->pipeline(map { [ 'XADD', $stream, '*', 'id', $_ ] } 1 .. 2);
wait_sql($node, 'postgres', 'SELECT count(*) FROM slow', 2, 'read');
rewrite(4);
$redis->pipeline(map { [ 'XADD', $stream, '*', 'id', $_ ] } 3 .. 5);
wait_sql($node, 'postgres', 'SELECT count(*) FROM slow', 5, 'read more');
my $session = pp_session($node);
$session->('BEGIN; LOCK TABLE slow');
$redis->pipeline(map { [ 'XADD', $stream, '*', 'id', $_ ] } 7 .. 26);
wait_sql($node, 'postgres', q(SELECT count(*) FROM pg_locks WHERE relation = 'slow'::regclass AND NOT granted), 1, 'a batch in hand waits');
$redis->kill9;
$redis->start;
wait_for { $redis->command('PING') } 'Redis answers once more';
($groups) = $redis->pipeline([ 'XINFO', 'GROUPS', $stream ]);
%group = @{ $groups->[0] };
my $undelivered = $redis->command('XRANGE', $stream, "($group{'last-delivered-id'}", '+');
note("what Redis tells: lag $group{lag}; it is ", scalar @$undelivered);
my %lags;
wait_for { $lags{ $hits->sql(q(SELECT coalesce(lag::text, 'unknown') FROM postpipe_stats WHERE pipeline = 'slow' AND measured_at IS NOT NULL)) } = 1; $lags{unknown} } 'until a worker has looked, it is not known';
$session->('COMMIT');
wait_sql($node, 'postgres', 'SELECT count(*) FROM slow', 25, 'all are read');
pp_balanced($node);

is($hits->sql(q(SELECT count(*) FROM postpipe_epoch WHERE pipeline = 'hits')), 1, 'it is the same stream');
is($hits->sql(q(SELECT coalesce(sum(entries), 0) FROM postpipe_lost_range)), 0, 'nothing is noted as lost');
is(join("\n", log_lines($node, qr/WARNING/)), '', 'and nothing is complained of');
done_testing();

sub read_as_python
{
	my ($n) = @_;
	my $reply = $redis->command('XREADGROUP', 'GROUP', 'g', 'python', 'COUNT', $n, 'STREAMS', $stream, '>');
	return $redis->command('XACK', $stream, 'g', map { $_->[0] } @{ $reply->[0][1] });
}

# The number is that of the file's name: 1 is what Redis began with.
sub rewrite
{
	my ($number) = @_;
	$redis->command('BGREWRITEAOF');
	return wait_for { $redis->cli('INFO', 'persistence') =~ /aof_rewrite_in_progress:0/ && glob($redis->dir . "/appendonlydir/*.$number.base.rdb") } 'the file is rewritten';
}
