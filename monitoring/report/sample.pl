# The load of the sample, and the report of it to OUT; `sample` sets it up.
#
# Producers add what the clock says that there is by now, so what they could not add while Redis was away comes at once
# when it is back.
use strict;
use warnings;
use FindBin;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Prometheus;
use Time::HiRes qw(sleep time);

use constant SECONDS => 120;

my %events = (22 => \&redis_goes, 32 => \&redis_comes, 60 => \&lock, 72 => \&unlock, 96 => \&redis_goes, 101 => \&redis_comes);

# Without a rewrite of its file: before 7.4, Redis tells a lag that is too large when it has loaded a rewritten one.
my $redis = Postpipe::Test::Redis->new(keep => 1, conf => ['auto-aof-rewrite-percentage 0']);
my $node = pp_node('sample', redis => $redis, conf => "postpipe.max_retries = 0\nfsync = on");
$node->safe_psql('postgres', 'CREATE EXTENSION postpipe');
$node->safe_psql('postgres', 'CREATE ROLE prometheus LOGIN IN ROLE pg_monitor');
wait_sql($node, 'postgres', q(SELECT to_regclass('posts') IS NOT NULL), 't', 'the table is there');
my $exporter = postgres_exporter($node, 'postgres');
my $prometheus = Postpipe::Test::Prometheus->new(targets => { 'localhost:9187' => $exporter->address }, interval => '2s');
wait_for { @{ $prometheus->query('stream_consumer_lag') } } 'Prometheus has samples';

my $locker = pp_session($node);
my ($start, $next, $up) = (time, 0, 1);
for (my $now = 0; $now < SECONDS; $now = time - $start)
{
	for my $at (sort { $a <=> $b } grep { $_ <= $now } keys %events)
	{
		delete($events{$at})->();
	}
	produce(expected($now)) if $up;
	sleep 0.1;
}
$locker->(undef);

local @ENV{qw(PROMETHEUS START END)} = ($prometheus->url, int $start, int time);
command_ok([ $^X, "$FindBin::RealBin/make-report" ], 'a report');
done_testing();

# The number of entries that there are after these seconds: 1500 a second, in waves.
sub expected { my ($now) = @_; return int(1500 * ($now + 3 * sin($now / 5))) }

# Up to this number; each twelfth is a post that was there, and each 400th is none.
sub produce
{
	my ($until) = @_;
	while ($next < $until)
	{
		my @commands;
		while ($next < $until && @commands < 1000)
		{
			my $post = ++$next % 12 == 0 ? $next - 7 : $next;
			push @commands, [ 'XADD', 'stream:posts:parsed', '*', channel_id => 'c' . $post % 100,
				telegram_message_id => $next % 400 == 0 ? 'none' : $post, text => "Post $next " . 'x' x 200 ];
		}
		$redis->pipeline(@commands);
	}
	return;
}

sub redis_goes { $up = 0; $redis->stop; return }
sub redis_comes { $redis->start; $up = 1; return }
sub lock { $locker->('BEGIN; LOCK TABLE posts IN SHARE MODE'); return }
sub unlock { $locker->('COMMIT'); return }
