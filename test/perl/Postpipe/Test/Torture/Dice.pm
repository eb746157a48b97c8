# Postpipe::Test::Torture::Dice: what is done next, at random.
package Postpipe::Test::Torture::Dice;

use strict;
use warnings;
use Exporter 'import';

our @EXPORT = qw(roll);

# One of the names of a hash, the more often the larger its value; the same ones after the same srand().
sub roll
{
	my ($weights) = @_;
	my $total = 0;

	$total += $_ for values %$weights;
	my $dice = rand $total;
	for my $name (sort keys %$weights)
	{
		$dice -= $weights->{$name};
		return $name if $dice < 0;
	}
	return;
}

1;
