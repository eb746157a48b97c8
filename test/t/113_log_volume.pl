# The log tells that something began, and why, and is not filled with it: a stream that somebody deletes, or trims unread, again and
# again, or a table that comes and goes. TAP, because it reads the log of a server of its own.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make drop rows wait_state);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('volume', redis => $redis);
my $n = 0;
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
my @names = map { "p$_" } 1 .. 3;
make($_) for @names;
wait_state($_) for @names;
everywhere();

# --- Everything in Redis is deleted, again and again.
my $from = log_offset($node);
for my $round (1 .. 12)
{
	$redis->command('FLUSHALL');
	everywhere();
}
is(sql('SELECT count(*) >= 10 FROM postpipe_epoch WHERE pipeline = $$p1$$'), 't', 'each time an epoch begins');
for my $name (@names)
{
	my @lines = said($name);
	is(scalar(grep { /epoch \d+ begins/ } @lines), causes($name), "$name: each cause is said, once");
	cmp_ok(scalar @lines, '<=', 8, '... in few lines') or diag(join "\n", @lines);
	is(scalar(grep { /made consumer group/ } @lines), 1, '... and what is done');
}

# --- A table that is away, and there again, again and again: the first times are said, and what lasts.
make('comes');
wait_state('comes');
$from = log_offset($node);
for my $round (1 .. 4)
{
	away();
	back();
}
is(join(' ', map { /worker 1: (\w+)/ } said('comes')), 'failed idle failed idle', 'said twice');
is(sql(q(SELECT max(repeated) FROM postpipe_events WHERE pipeline = 'comes' AND state = 'failed')), 3, '... while postpipe_events has each time');
$from = log_offset($node);
away();
wait_for { said('comes') } 'it stays away: that is said';
back();
is(join(' ', map { /worker 1: (\w+)/ } said('comes')), 'failed idle', '... and that it is back');

# --- Trimmed unread, again and again: the first one is said, and postpipe_lost has each.
make('lost');
wait_state('lost');
$redis->xadd('stream:lost', v => ++$n);
rows('lost', 1);
$from = log_offset($node);
for my $round (1 .. 5)
{
	$redis->transaction((map { [ 'XADD', 'stream:lost', '*', v => ++$n ] } 1 .. 10), [ 'XTRIM', 'stream:lost', 'MAXLEN', 1 ]);
	wait_sql($node, 'postgres', q(SELECT sum(entries) FROM postpipe_lost WHERE pipeline = 'lost'), 9 * $round, "round $round: nine are lost");
}
is(scalar(grep { /WARNING: .* 9 entries of stream "stream:lost" were trimmed/ } said('lost')), 1, 'trimmed unread: said once');
is(sql(q(SELECT count(*) FROM postpipe_lost WHERE pipeline = 'lost')), 5, '... and listed each time');
pp_balanced($node);
$node->stop;
done_testing();

sub said { my ($name) = @_; return grep { /LOG:|WARNING:/ } log_lines($node, qr/postpipe pipeline "$name"/, $from) }
sub causes { my ($name) = @_; return sql("SELECT count(DISTINCT cause) FROM postpipe_epoch WHERE pipeline = '$name' AND cause <> 'first'") }

sub away
{
	sql('ALTER TABLE t_comes RENAME TO t_away');
	$redis->xadd('stream:comes', v => ++$n);
	return wait_state('comes', 'failed');
}

sub back
{
	sql('ALTER TABLE t_away RENAME TO t_comes');
	return wait_state('comes');
}

# An entry in each stream is applied.
sub everywhere
{
	$n++;
	$redis->pipeline(map { [ 'XADD', "stream:$_", '*', 'v', $n ] } @names);
	wait_sql($node, 'postgres', "SELECT count(*) FROM t_$_ WHERE v = '$n'", 1, "$_: entry $n is applied") for @names;
	return;
}
