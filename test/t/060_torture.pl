# A short round of the randomized crash test (make torture runs it for ten minutes), and a few immediate stops under load.
# TAP, because processes are killed, the network is cut, and Redis has to be started anew. A failure prints the seed.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Torture;

my $seed = $ENV{SEED} // 1 + int rand 1e9;
note("seed $seed");
Postpipe::Test::Torture->new(seed => $seed, seconds => 12)->faults_round or diag("again: SEED=$seed test/run test/t/060_torture.pl");
Postpipe::Test::Torture->new(seed => $seed)->stops_round(5) or diag("again: SEED=$seed test/run test/t/060_torture.pl");
done_testing();
