# Postpipe::Test::Wait: the one place where the tests wait. A test waits for a condition, never for time.
package Postpipe::Test::Wait;

use strict;
use warnings;
use Exporter 'import';
use Test::More ();
use Time::HiRes ();

our @EXPORT = qw(wait_for);

# Called with nothing when a wait fails, to say more (Postpipe::Test shows the views of all its servers).
our @on_timeout;

our $default_timeout = 120;

# poll(condition, seconds): calls it every 20 ms until it returns a true value, and returns that; an exception counts as
# false. Returns nothing when the time is up; in a list also the last value and the last exception.
sub poll
{
	my ($condition, $timeout) = @_;
	my $deadline = Time::HiRes::time() + ($timeout // $default_timeout);

	while (1)
	{
		my $value = eval { $condition->() };
		return $value if $value;
		return wantarray ? (undef, $value, $@) : undef if Time::HiRes::time() >= $deadline;
		select(undef, undef, undef, 0.02);
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
