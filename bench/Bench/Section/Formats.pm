# The three formats of producers, the same posts in each.
package Bench::Section::Formats;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;

sub run
{
	my ($stage) = @_;
	my $entries = $stage->entries(0.5);
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, "one worker, formats of producers, $entries posts");
	my $contender = sub {
		my ($format) = @_;
		my $posts = Bench::Posts->new($stage, entries => $entries, format => $format);
		return $format => sub {
			$posts->publish;
			$stage->empty('posts');
			my $result = $pipeline->drain;
			$posts->verify('posts', "format $format");
			return $result;
		};
	};

	return $rounds->compare(contenders => [ map { $contender->($_) } qw(A B C) ])
	  ->ratio('format_b_to_a', 'format B / format A', 'B', 'A', 'at least', 0.85)
	  ->ratio('format_c_to_a', 'format C / format A', 'C', 'A', 'at least', 0.85)
	  ->contender('A', 'format A, a field for each value')
	  ->contender('B', 'format B, JSON')
	  ->contender('C', 'format C, JSON in an envelope')
	  ->result;
}

1;
