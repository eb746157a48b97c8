# Postpipe::Test::Wait: the one place where the tests wait. A test waits for a condition, never for time.
package Postpipe::Test::Wait;

use strict;
use warnings;
use Exporter 'import';
use List::Util qw(max min);
use Test::More ();
use Time::HiRes ();

our @EXPORT = qw(wait_for);

# Called with nothing when a wait fails, to say more (Postpipe::Test shows the views of all its servers).
our @on_timeout;

# More for a server that is slow by how it was built, with the variable of PostgreSQL's own tests.
our $default_timeout = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 120;

# poll(condition, seconds): calls it until it returns a true value, and returns that; an exception counts as false. It is
# called every 20 ms, and less often the longer it takes: a condition is mostly a psql, and several files share two cores. Returns nothing when the time is up; in a list also the last value and the last exception.
sub poll
{
	my ($condition, $timeout) = @_;
	my $start = Time::HiRes::time();

	while (1)
	{
		my $value = eval { $condition->() };
		my $waited = Time::HiRes::time() - $start;
		return $value if $value;
		return wantarray ? (undef, $value, $@) : undef if $waited >= ($timeout // $default_timeout);
		select(undef, undef, undef, min(0.3, max(0.02, $waited / 10)));
	}
}

# wait_for { condition } 'what is waited for', seconds
#
# As poll. When the time is up the test has failed; what is known is shown.
sub wait_for(&$;$)
{
	my ($condition, $what, $timeout) = @_;
	my ($value, $last, $error) = poll($condition, $timeout);

	return $value if $value;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	Test::More::fail("$what (waited " . ($timeout // $default_timeout) . ' s)');
	Test::More::diag('last value: ' . ($last // 'undef') . ($error ? ", last error: $error" : ''));
	$_->() for @on_timeout;
	return;
}

1;
