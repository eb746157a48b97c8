# A slot moves from one node of a Redis Cluster to another while a batch is in hand: the pipeline says where it has gone, and goes on
# there when it is told to. TAP, because it needs two real nodes.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Hits;

my ($old, $new) = map { Postpipe::Test::Redis->new(conf => ['cluster-enabled yes']) } 1 .. 2;
$old->command('CLUSTER', 'ADDSLOTS', 0 .. 16383);
$new->command('CLUSTER', 'MEET', '127.0.0.1', $old->port);
for my $redis ($old, $new)
{
	wait_for { $redis->cli('CLUSTER', 'INFO') =~ /cluster_state:ok.*cluster_known_nodes:2/s } 'the nodes know each other';
}
my ($old_id, $new_id) = map { $_->command('CLUSTER', 'MYID') } $old, $new;

my $node = pp_node('cluster', redis => $old);
my $hits = Postpipe::Test::Hits->new(node => $node, redis => $old);
$hits->publish(10);
$hits->settled('one node has all slots');

# --- The keys are on the way: what the old node does not have any more, it has to be asked for elsewhere.
my $session = $hits->session;
$session->('BEGIN; LOCK TABLE hits');
$hits->publish(5);
$hits->stuck;
my $slot = $old->command('CLUSTER', 'KEYSLOT', $hits->stream);
$new->command('CLUSTER', 'SETSLOT', $slot, 'IMPORTING', $old_id);
$old->command('CLUSTER', 'SETSLOT', $slot, 'MIGRATING', $new_id);
my @keys = @{ $old->command('CLUSTER', 'GETKEYSINSLOT', $slot, 100) };
is(scalar(grep { $_ eq $hits->stream } @keys), 1, 'the stream is in the slot');
is($old->command('MIGRATE', '127.0.0.1', $new->port, '', 0, 10000, 'KEYS', @keys), 'OK', 'its keys have moved');
$session->('COMMIT');
$hits->shows(qr/^failed\|redis_cluster\|ASK $slot /, 'ASK: shown');
like(join("\n", log_lines($node, qr/HINT/)), qr/Redis Cluster is not supported, but for one node that holds all slots or the stream's key/, '... with a hint');

# --- The slot has moved.
$_->command('CLUSTER', 'SETSLOT', $slot, 'NODE', $new_id) for $new, $old;
$hits->shows(qr/^failed\|redis_cluster\|MOVED $slot 127\.0\.0\.1:@{[ $new->port ]}/, 'MOVED: shown, with where it is');
is($hits->sql('SELECT count(*) FROM postpipe_dlq'), 0, 'nothing is dead');

$hits->{redis} = $new;
$hits->publish(5);
$node->append_conf('postgresql.conf', "postpipe.redis_url = '" . $new->url . "'");
$node->reload;
$hits->settled('told where it is');
pp_balanced($node);
$node->stop;
done_testing();
