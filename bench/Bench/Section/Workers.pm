# Two workers of a pipeline against one.
package Bench::Section::Workers;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;

sub run
{
	my ($stage) = @_;
	my $posts = Bench::Posts->new($stage, entries => $stage->entries(1));
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, "two workers against one, $posts->{entries} posts");
	my $with = sub {
		my ($workers) = @_;
		return sub {
			$posts->publish;
			$stage->empty('posts');
			$pipeline->configure(workers => $workers);
			my $result = $pipeline->drain;
			$posts->verify('posts', "$workers workers");
			return $result;
		};
	};

	$rounds->compare(contenders => [ one => $with->(1), two => $with->(2) ]);
	$pipeline->configure;
	return $rounds
	  ->ratio('two_workers_to_one', 'two workers / one', 'two', 'one', 'at least', 1.4)
	  ->contender('one', 'one worker')
	  ->contender('two', 'two workers')
	  ->result;
}

1;
