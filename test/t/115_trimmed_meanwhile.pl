# A stream is trimmed while worker 1 looks at it, between two of its commands: it is the same stream all the same, and no more
# entries are lost than nobody has read. TAP, because it needs a proxy that trims a stream before it forwards a command.

use strict;
use warnings;
use PostgreSQL::Test::Utils;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(make xadds pause resume rows shows drop);

my $redis = Postpipe::Test::Redis->new;
my $proxy = Postpipe::Test::Proxy->new(target => $redis->port);
my $node = pp_node('meanwhile', redis => $proxy);
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));

# Before the last entry that was settled is looked for, and before a range is read, which a consumer that was deleted leads to.
for my $case ([ last => 'XRANGE' ], [ range => 'XPENDING.*XRANGE' ])
{
	my ($what, $pattern) = @$case;
	for my $workers (1, 2)
	{
		my $p = "${what}_$workers";
		make($p, workers => $workers);
		$redis->pipeline(xadds($p, 50));
		rows($p, 50);
		pause($p);
		my @consumers = map { +{@$_}->{name} } @{ $redis->command('XINFO', 'CONSUMERS', "stream:$p", "postpipe_$p") };
		$redis->pipeline(map { [ 'XGROUP', 'DELCONSUMER', "stream:$p", "postpipe_$p", $_ ] } @consumers);
		$redis->pipeline(xadds($p, 10));
		my $script = PostgreSQL::Test::Utils::tempdir() . '/gate';
		PostgreSQL::Test::Utils::append_to_file($script, <<"SH");
printf %s "\$FP_DATA" | tr -d '\\r\\n' | grep -q '$pattern' || exit 0
redis-cli -p @{[ $redis->port ]} XTRIM stream:$p MAXLEN 5
SH
		$proxy->command("gate c2s XRANGE sh $script");
		resume($p);
		rows($p, 55, "$p: what is left is read");
		$proxy->command('pass');
		shows($p, '60|55|5|0', 'and five are lost');
		is(sql("SELECT count(*) FROM postpipe_epoch WHERE pipeline = '$p'"), 1, '... in one epoch');
		drop($p);
	}
}

$node->stop;
done_testing();
