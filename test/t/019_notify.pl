# NOTIFY with each batch that applied entries, when the option notify names a channel.
# TAP, because it needs a Redis, background workers and a session that listens.

use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('notify', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts'); CREATE TABLE t (n int)));
for my $bad ('', 'x' x 64)
{
	my (undef, undef, $error) = $node->psql('postgres', definition('bad', $bad));
	like($error, qr/option notify must have 1 to 63 bytes.*HINT:  It is the channel to LISTEN on/s, 'a channel that cannot be is refused: ' . length $bad);
}
sql(definition('told', 'Told you'));
sql(definition('silent'));
my $listener = pp_session($node);
$listener->('LISTEN "Told you"');

# With several in one batch, the first and the last that were applied are named, and not the one that failed.
sql(q(SELECT postpipe_pause('told'); SELECT postpipe_wait_state('told', 'paused')));
my @ids = map { $redis->xadd('stream:told', n => $_) } qw(1 2 x 3);
sql(q(SELECT postpipe_resume('told')));
wait_sql($node, 'postgres', q(SELECT applied, dead FROM postpipe_audit WHERE pipeline = 'told'), '3|1', 'three are applied, and one failed');
my $told = heard();
my $applied = 0;
$applied += $_ for $told =~ /"pipeline": "told", "applied": (\d+),/g;
is($applied, 3, 'three were told of') or diag($told);
like($told, qr/"Told you".*"first_id": "$ids[0]"/, '... from the first one on');
like($told, qr/.*"last_id": "$ids[3]"\}/s, '... to the last one');

# Nothing is told by a pipeline without the option, nor for what comes again.
$redis->xadd('stream:silent', n => 5);
wait_sql($node, 'postgres', q(SELECT count(*) FROM t WHERE n = 5), 1, 'one of another pipeline is applied');
$redis->command('XGROUP', 'SETID', 'stream:told', 'postpipe_told', '0');
wait_sql($node, 'postgres', q(SELECT entries_deduplicated >= 4 FROM postpipe_stats WHERE pipeline = 'told'), 't', 'all come again');
is(heard(), '', '... and nothing is told');
$listener->(undef);
pp_balanced($node);
$node->stop;
done_testing();

sub heard { return $listener->('SELECT') =~ s/^--\n|^\(1 row\)\n//mgr }

sub definition
{
	my ($name, $channel) = @_;
	my $options = defined $channel ? qq({"notify": "$channel"}) : '{}';
	return "SELECT postpipe_create_pipeline('$name', 'stream:$name', options => '$options', statement => 'INSERT INTO t SELECT (event ->> ''n'')::int FROM postpipe_batch')";
}
