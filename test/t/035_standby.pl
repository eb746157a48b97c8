# Standbys: no process of ours and no client at Redis, whatever is replayed; consuming soon after promotion; and nothing on the old
# primary that has become a standby. TAP, because it takes several servers, a cascade, promotion and pg_rewind.

use strict;
use warnings;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Hits;

my $redis = Postpipe::Test::Redis->new;
my $main = pp_node('main', redis => $redis, databases => 'postgres, other', allows_streaming => 1, conf => "wal_log_hints = on\n");
my $hits = Postpipe::Test::Hits->new(node => $main, redis => $redis);
$hits->publish(20);
$hits->settled('on the primary');
my $clients = clients();

$main->backup('b');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($main, 'b', has_streaming => 1);
$standby->start;
my $cascade = PostgreSQL::Test::Cluster->new('cascade');
$standby->backup('c');
$cascade->init_from_backup($standby, 'c', has_streaming => 1);
$cascade->start;
nothing_on($_) for $standby, $cascade;

# --- What changes a pipeline says that this is not the server for it.
for my $call (q(postpipe_create_pipeline('new', 'stream:new', target => 'hits')), q(postpipe_alter_pipeline('hits', workers => 2)), q(postpipe_rewind('hits')),
	map { "$_('hits')" } qw(postpipe_drop_pipeline postpipe_pause postpipe_resume postpipe_replay postpipe_discard))
{
	my (undef, undef, $error) = $standby->psql('postgres', "SELECT $call");
	like($error, qr/ERROR:  cannot execute postpipe_\w+\(\) in a read-only transaction/, "$call on a standby");
}

# --- Another database is made, used and dropped: replay is not held up, and nothing starts for it.
for my $round (1 .. 3)
{
	$main->safe_psql('postgres', 'CREATE DATABASE other');
	my $other = Postpipe::Test::Hits->new(node => $main, redis => $redis, db => 'other', name => 'other');
	$other->publish(5);
	$other->settled("round $round: another database");
	is(($main->psql('postgres', 'DROP DATABASE other', timeout => 30))[0], 0, 'DROP DATABASE');
	caught_up();
	is($_->safe_psql('postgres', q(SELECT count(*) FROM pg_database WHERE datname = 'other')), 0, '... is replayed by ' . $_->name) for $standby, $cascade;
	$redis->command('DEL', $other->stream);
}
$hits->publish(20);
$hits->settled('still on the primary');
caught_up();
is($_->safe_psql('postgres', 'SELECT count(*) FROM hits'), scalar @{ $hits->{ids} }, $_->name . ' has it by replication') for $standby, $cascade;
nothing_on($_) for $standby, $cascade;
wait_for { clients() == $clients } 'Redis has the clients that it had before';

# --- The primary is gone: the standby reads after its promotion, its own standby does not.
$main->stop('immediate');
$hits->publish(20);
$standby->promote;
$hits->{node} = $standby;
$hits->settled('after the promotion');
nothing_on($cascade);
$standby->wait_for_catchup($cascade, 'replay');
is($cascade->safe_psql('postgres', 'SELECT count(*) FROM hits'), scalar @{ $hits->{ids} }, 'the cascaded standby follows');

# --- The old primary comes back as a standby, rewound by pg_rewind.
my $conf = slurp_file($main->data_dir . '/postgresql.conf');
$standby->safe_psql('postgres', 'CHECKPOINT');
command_ok([ 'pg_rewind', '--no-sync', '--source-server', $standby->connstr('postgres'), '--target-pgdata', $main->data_dir ], 'pg_rewind, with its single-user recovery');
open(my $fh, '>', $main->data_dir . '/postgresql.conf') or die $!;
print $fh $conf;
close($fh);
$main->enable_streaming($standby);
$main->start;
$hits->publish(20);
$hits->settled('with the old primary as a standby');
$standby->wait_for_catchup($main, 'replay');
is($main->safe_psql('postgres', 'SELECT count(*) FROM hits'), scalar @{ $hits->{ids} }, 'the old primary follows');
nothing_on($main);
is(consumers($redis, $hits->stream, $hits->group), 1, 'one consumer through all of it');
wait_for { clients() == $clients } 'and the clients of one server';
for my $node ($main, $standby, $cascade)
{
	is(scalar log_lines($node, qr/PANIC|terminated by signal|exited with exit code [^01]/), 0, $node->name . ': no crash');
}

done_testing();

sub clients { return scalar grep { /name=postpipe:/ } split /\n/, $redis->cli('CLIENT', 'LIST') }

sub caught_up
{
	$main->wait_for_catchup($standby, 'replay');
	$standby->wait_for_catchup($cascade, 'replay', $main->lsn('insert'));
	return;
}

sub nothing_on
{
	my ($node) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($node->safe_psql('postgres', q(SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'postpipe%')), 0, $node->name . ': no process of ours');
	return is($node->safe_psql('postgres', q(SELECT state || ' ' || reason_code FROM postpipe_stats WHERE pipeline = 'hits')), 'waiting standby', '... and the view says why');
}
