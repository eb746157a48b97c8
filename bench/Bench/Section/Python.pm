# Clients in Python: in batches, and one entry at a time as the worker does that is replaced.
package Bench::Section::Python;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;
use FindBin;

my $group = 'bench_python';

sub run
{
	my ($stage) = @_;
	my $posts = Bench::Posts->new($stage, entries => $stage->entries(2 / 3));
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, 'one worker against clients in Python');

	if (!$stage->option('python'))
	{
		return $rounds->note('Left out: no python3 with redis and asyncpg was found (Debian: python3-redis, python3-asyncpg).')->result;
	}
	$rounds->compare(
		before => sub { $posts->publish },
		contenders => [
			postpipe => sub {
				$stage->empty('posts');
				my $result = $pipeline->drain;
				$posts->verify('posts', 'postpipe');
				return $result;
			},
			batches => sub { consume($stage, $pipeline->{stream}, 1000, $stage->entries(1 / 3)) },
			single => sub { consume($stage, $pipeline->{stream}, 100, $stage->entries(1 / 20), 'one') }
		]);
	$stage->redis("XGROUP DESTROY $pipeline->{stream} $group");

	return $rounds
	  ->ratio('postpipe_to_python_batches', 'one worker / Python, batches of 1000', 'postpipe', 'batches', 'at least', 4.5)
	  ->ratio('postpipe_to_python_single', 'one worker / Python, one at a time', 'postpipe', 'single', 'at least', 35)
	  ->contender('postpipe', "postpipe, one worker, $posts->{entries} posts")
	  ->contender('batches', 'Python, batches of 1000, ' . $stage->entries(1 / 3) . ' of them')
	  ->contender('single', 'Python, one at a time, ' . $stage->entries(1 / 20) . ' of them')
	  ->result;
}

# The first posts of the stream, without the time in which Python starts and connects.
sub consume
{
	my ($stage, $stream, $batch, $limit, @one) = @_;
	$stage->empty('posts');
	$stage->redis("XGROUP DESTROY $stream $group");
	$stage->redis("XGROUP CREATE $stream $group 0");
	my $result = $stage->timed_program($stage->option('python'), "$FindBin::RealBin/consumer.py", $stage->redis_port, $stream, $group,
		'posts', $batch, $limit, @one);
	my $count = $stage->sql('SELECT count(*) FROM posts');
	die "Python: the table has $count rows, not $limit\n" if $count != $limit;
	return { %$result, seconds => $result->{own_seconds} };
}

1;
