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
$redis->command('BGREWRITEAOF');
wait_for { $redis->cli('INFO', 'persistence') =~ /aof_rewrite_in_progress:0/ && glob($redis->dir . '/appendonlydir/*.2.base.rdb') }
'the file is rewritten';
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

is($hits->sql(q(SELECT count(*) FROM postpipe_epoch WHERE pipeline = 'hits')), 1, 'it is the same stream');
is($hits->sql(q(SELECT coalesce(sum(entries), 0) FROM postpipe_lost_range)), 0, 'nothing is noted as lost');
is(join("\n", log_lines($node, qr/WARNING/)), '', 'and nothing is complained of');
done_testing();
