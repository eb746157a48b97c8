# The randomized crash test; test/torture sets it up. See Postpipe::Test::Torture for what it does.

use strict;
use warnings;
use Getopt::Long;
use Postpipe::Test;
use Postpipe::Test::Torture;
use Postpipe::Test::Torture::Moves;

use constant ROUND_SECONDS => 45;
use constant MOVES_SHARE => 0.1;

my %opt = (seconds => 600, mode => 'all');
GetOptions(\%opt, 'seconds=i', 'seed=i', 'mode=s', 'only=s', 'verbose', 'stops=i') or die "see test/torture\n";
my $seed = $opt{seed} // 1 + int rand 1e9;
my $until = time + $opt{seconds};
my $how = defined $opt{only} ? " --only $opt{only}" : '';
my @options = (verbose => $opt{verbose}, only => [ split /,/, $opt{only} // '' ]);

diag("seed $seed");
# Each round begins anew, with the next seed: --seed with that number repeats it.
if ($opt{mode} =~ /^(?:moves|all)$/)
{
	my $end = time + $opt{seconds} * ($opt{mode} eq 'all' ? MOVES_SHARE : 1);
	for (my $number = $seed; $number == $seed || time < $end; $number++)
	{
		subtest "moves, seed $number" => sub {
			my $ok = Postpipe::Test::Torture::Moves->new(seed => $number, verbose => $opt{verbose})->round;
			diag("moves, seed $number: ", $ok ? 'all well' : "FAILED; again: test/torture --mode moves --seconds 1 --seed $number");
		};
	}
}
if ($opt{mode} =~ /^(?:faults|all)$/)
{
	while (time < $until)
	{
		my $left = $until - time;
		my $seconds = $left < ROUND_SECONDS * 1.5 ? $left : ROUND_SECONDS;
		subtest "seed $seed" => sub {
			my $ok = Postpipe::Test::Torture->new(seed => $seed, seconds => $seconds, @options)->faults_round;
			diag("seed $seed: ", $ok ? 'all well' : "FAILED; again: test/torture --mode faults --seconds $seconds --seed $seed$how");
		};
		$seed++;
	}
}
if ($opt{mode} =~ /^(?:stops|all)$/)
{
	subtest "immediate stops, seed $seed" => sub {
		my $ok = Postpipe::Test::Torture->new(seed => $seed, @options)->stops_round($opt{stops} // 50);
		diag("immediate stops, seed $seed: ", $ok ? 'all well' : "FAILED; again: test/torture --mode stops --seed $seed");
	};
}
done_testing();
