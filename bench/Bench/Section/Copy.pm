# The main comparison: one worker, a backlog of new flat posts, batches of 1000, against COPY and against a client in C.
package Bench::Section::Copy;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;

my $client_group = 'bench_client';

sub run
{
	my ($stage) = @_;
	my $posts = Bench::Posts->new($stage, entries => $stage->entries(1));
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, "one worker against COPY and a client in C, $posts->{entries} posts");
	my $checked = sub {
		my ($name, $load) = @_;
		return $name => sub {
			$stage->empty('posts');
			my $result = $load->();
			$posts->verify('posts', $name);
			return $result;
		};
	};

	$rounds->compare(
		before => sub { $posts->publish },
		contenders => [
			$checked->(postpipe => sub { $pipeline->drain }),
			$checked->(copy => sub { $posts->copy('posts') }),
			$checked->(client => sub { drain_with_client($stage, $pipeline->{stream}) })
		]);
	$stage->redis("XGROUP DESTROY $pipeline->{stream} $client_group");

	return $rounds
	  ->ratio('postpipe_to_copy', 'one worker / COPY', 'postpipe', 'copy', 'at least', 1.0)
	  ->ratio('postpipe_to_client', 'one worker / C client', 'postpipe', 'client', 'at least', 1.6)
	  ->figure('memory_end_to_begin', 'memory of the worker, end / begin', '',
		sub { my $memory = $_[0]{postpipe}{memory}; $memory->{end} / $memory->{begin} }, 'at most', 1.1)
	  ->contender('postpipe', 'postpipe, one worker')
	  ->contender('copy', 'COPY FROM a file on the server')
	  ->contender('client', 'C client and its backend')
	  ->result;
}

# Its time is taken from outside too, connecting included.
sub drain_with_client
{
	my ($stage, $stream) = @_;
	$stage->redis("XGROUP DESTROY $stream $client_group");
	$stage->redis("XGROUP CREATE $stream $client_group 0");
	return $stage->timed_program('./client', $stage->redis_port, $stream, $client_group, 'posts', $stage->option('batch'));
}

1;
