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

# A group that somebody has set back, or destroyed so that the pipeline makes it again, gives entries again that are on record.
# These, and some that nobody has read, are trimmed just before the stream is looked at with a read: with the first one after
# that; or, while workers read, with a later one, when it is known how Redis counts.
for my $back ([ 'SETID', '0' ], [ 'SETID', '0', 'ENTRIESREAD', '0' ], ['DESTROY'])
{
	my ($command, @at) = @$back;
	for my $workers (1, 2)
	{
		for my $paused ($command eq 'DESTROY' ? 1 : (0, 1))
		{
			my $p = lc join '_', 'again', $command, scalar @at, $workers, $paused;
			my @move = ('XGROUP', $command, "stream:$p", "postpipe_$p", @at);
			my @before = $paused ? () : 1 .. 3;
			my $dir = PostgreSQL::Test::Utils::tempdir();
			PostgreSQL::Test::Utils::append_to_file("$dir/gate", <<"SH");
printf %s "\$FP_DATA" | tr -d '\\r\\n' | grep -q 'XINFO.6STREAM.*XREADGROUP' || exit 0
for look in @before; do ! mkdir $dir/look\$look 2>/dev/null || exit 0; done
mkdir $dir/trimmed 2>/dev/null || exit 0
{
	echo MULTI
	@{[ $paused ? '' : "echo @move" ]}
	for i in 1 2 3 4 5 6 7; do echo XADD stream:$p '*' v new\$i; done
	echo XTRIM stream:$p MAXLEN 0
	echo EXEC
} | redis-cli -p @{[ $redis->port ]}
SH
			make($p, workers => $workers);
			$redis->pipeline(xadds($p, 20));
			rows($p, 20);
			if ($paused)
			{
				pause($p);
				$redis->command(@move);
			}
			$proxy->command("gate c2s XREADGROUP sh $dir/gate");
			if ($paused)
			{
				resume($p);
			}
			else
			{
				wait_for { -d "$dir/look3" } "$p: the stream is looked at";
				$redis->pipeline(xadds($p, 1));
			}
			wait_for { -d "$dir/trimmed" } "$p: all is trimmed";
			$proxy->command('pass');
			$redis->pipeline(xadds($p, 3));
			rows($p, 24 - $paused, "$p: what comes then is read");
			shows($p, sprintf('%d|%d|7|0', 31 - $paused, 24 - $paused), 'and seven are lost');
			is(sql("SELECT count(*) FROM postpipe_epoch WHERE pipeline = '$p'"), 1, '... in one epoch');
			drop($p);
		}
	}
}

$node->stop;
done_testing();
