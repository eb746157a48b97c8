# Two workers of a pipeline against one, for each format of producers.
package Bench::Section::Workers;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;

sub run
{
	my ($stage) = @_;
	my $entries = $stage->entries(1);
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, "two workers against one, $entries posts");
	my $contenders = sub {
		my ($format) = @_;
		my $posts = Bench::Posts->new($stage, entries => $entries, format => $format);
		return map {
			my $workers = $_;
			"$format$workers" => sub {
				$posts->publish;
				$stage->empty('posts');
				$pipeline->configure(workers => $workers);
				my $result = $pipeline->drain;
				$posts->verify('posts', "format $format, $workers workers");
				return $result;
			};
		} 1, 2;
	};

	$rounds->compare(contenders => [ map { $contenders->($_) } qw(A B C) ]);
	$pipeline->configure;
	$rounds->ratio('two_workers_to_one', 'two workers / one, format A', 'A2', 'A1', 'at least', 1.4);
	$rounds->ratio("two_workers_to_one_\l$_", "two workers / one, format $_", "${_}2", "${_}1") for qw(B C);
	for my $format (qw(A B C))
	{
		$rounds->figure("room_for_two_\l$format", "... that need as much for an entry, with no core ever idle, format $format", '', sub { 1 / $_[0]{"${format}1"}{busy} })
		  if $rounds->{rounds}[0]{"${format}1"}{busy};
		$rounds->contender("${format}1", "format $format, one worker")->contender("${format}2", "format $format, two workers");
	}
	return $rounds->result;
}

1;
