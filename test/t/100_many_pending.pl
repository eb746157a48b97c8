# More entries are pending for another consumer when an epoch begins than are noted: none of them is taken for settled, and each is
# applied once when it is handed over. TAP, because it takes a Redis with a hundred thousand pending entries.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make drop pause resume rows);

my $most = 100_000;    # are noted
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('many', redis => $redis);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# --- A group that was there before: the epoch begins with what is pending in it.
my $pending = pending_for_python('many', $most + 10);
is($pending, $most + 10, 'entries are pending for a Python worker');
make('many');
$redis->xadd('stream:many', v => 'new');
rows('many', 1);
wait_sql($node, 'postgres', q(SELECT balance, reason FROM postpipe_audit), '|how many entries the epoch began with could not be determined', 'the audit says why it has no balance');
hand_over('many', $pending);
rows('many', 2, 'the last one is applied when it is handed over');

# --- A rewind, likewise.
pause('many');
my $last = $redis->command('XREVRANGE', 'stream:many', '+', '-', 'COUNT', 1)->[0][0];
is(sql("SELECT postpipe_rewind('many', to_id => '$last')"), 0, 'a rewind to where the group stands');
resume('many');
hand_over('many', $pending - 1);
rows('many', 3, 'the last but one is applied as well');
is(sql(q(SELECT string_agg(concat_ws(' ', epoch, cause, a.applied, coalesce(balance::text, '-')), ', ' ORDER BY epoch) FROM postpipe_audit a JOIN postpipe_epoch USING (pipeline, epoch))),
	'1 first 2 -, 2 rewind 1 -', '... in the epoch of the rewind');

# --- All of them.
is(sql(q(SELECT postpipe_claim('many', 'python', '0'))), $pending - 2, 'the others are claimed');
rows('many', $pending + 1, '... and applied, each once');
wait_for { pending($redis, 'stream:many', 'postpipe_many') == 0 } '... and acknowledged';
is(sql(q(SELECT count(*) FROM postpipe_lost)), 0, '... and nothing is lost');
drop('many');

$node->stop;
done_testing();

# The entries 1-1 to n-1.
sub pending_for_python
{
	my ($name, $n) = @_;
	return $redis->command('EVAL', <<'LUA', 1, "stream:$name", "postpipe_$name", $n);
for i = 1, tonumber(ARGV[2]) do
	redis.call('XADD', KEYS[1], i .. '-1', 'v', i)
end
redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], 0)
return #redis.call('XREADGROUP', 'GROUP', ARGV[1], 'python', 'COUNT', ARGV[2], 'STREAMS', KEYS[1], '>')[1][2]
LUA
}

# What is pending for the Python worker is given to worker 1.
sub hand_over
{
	my ($name, $id) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $consumer = sql("SELECT consumer FROM postpipe_workers WHERE pipeline = '$name'");
	pause($name);
	is(scalar @{ $redis->command('XCLAIM', "stream:$name", "postpipe_$name", $consumer, 0, "$id-1", 'JUSTID') }, 1, "$name: $id is handed over");
	resume($name);
	return;
}
