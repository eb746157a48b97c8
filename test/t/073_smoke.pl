# make smoke: on a server where all is well, with a pipeline beside it that is not touched; and where it is not.
# TAP, because it needs servers that are broken.

use strict;
use warnings;
use FindBin;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('smoke', redis => $redis, conf => 'fsync = on');
$node->safe_psql('postgres', 'CREATE EXTENSION postpipe');
$redis->xadd('stream:posts:parsed', post_id => 'p1', channel_id => 'c1', telegram_message_id => 1, text => 'x');
wait_sql($node, 'postgres', q(SELECT balance FROM postpipe_audit WHERE pipeline = 'posts' AND applied = 1), '0', 'the pipeline posts runs');
my $before = state();

my ($status, $out) = smoke();
is($status, 0, 'all is well') or diag($out);
like($out, qr/== All is well\n$/, '... and it says so');
is(() = $out =~ /^ok /mg, 9, '... of each thing');
# The supervisor gives the group back a moment later.
wait_for { state() eq $before } 'what was there is as it was';
ok($redis->command('XLEN', 'postpipe:smoke') <= 10, '... and its stream is short');

$redis->command('ACL', 'SETUSER', 'default', '-xack');
($status, $out) = smoke();
isnt($status, 0, 'not all is well');
like($out, qr/XACK.*NOT ok   no error.*NOT ok   every step passes.*== NOT all is well\n$/s, '... and it says what is not') unless $redis->cli('INFO', 'server') =~ /redis_version:6/;
$redis->command('ACL', 'SETUSER', 'default', '+xack');
# A worker that may not acknowledge may have no connection any more by which it could give the group back.
my @left = grep { /^postpipe:\{postpipe:smoke\}/ } split /\n/, $redis->cli('KEYS', '*');
$redis->command('DEL', @left) if @left;
wait_for { state() eq $before } '... with nothing left';
$node->stop;
($status, $out) = smoke();
isnt($status, 0, 'no server');
done_testing();

sub smoke
{
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PGDATABASE} = 'postgres';
	my $out = qx("$FindBin::RealBin/../smoke" 2>&1);
	return ($? >> 8, $out);
}

sub state
{
	return $node->safe_psql('postgres', q(SELECT string_agg(pipeline, ' ') FROM postpipe_pipelines; SELECT count(*) FROM pg_class WHERE relname LIKE 'smoke%'; SELECT count(*), max(id) FROM posts))
	  . join(' ', sort grep { !/^postpipe:(?:\{stream:posts|smoke$)/ } split /\n/, $redis->cli('KEYS', '*'));
}
