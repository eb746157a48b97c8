# Postpipe::Test::Harness: prove and pg_prove, and one more line "passed failed skipped" in the file POSTPIPE_TALLY, from
# which test/run makes its summary. Of a test that failed it also shows the end of its log, where the reason of a death is, and
# after all else, for who sees only the last lines, the checks that failed with what they say.
# Use: prove --harness Postpipe::Test::Harness
package Postpipe::Test::Harness;

use strict;
use warnings;
use parent 'TAP::Harness';
use File::Basename qw(basename);

use constant { LOG_LINES => 12, FAILURE_LINES => 14 };

sub summary
{
	my ($self, $aggregate) = @_;
	my ($passed, $failed, $skipped) = (0, 0, 0);
	my @failures;

	for my $file ($aggregate->descriptions)
	{
		my ($parser) = $aggregate->parsers($file);
		my $planned = $parser->tests_planned || 0;
		my $lacking = $planned > $parser->tests_run ? $planned - $parser->tests_run : 0;
		my $wrong = $parser->failed + $lacking;

		# A test that dies after its last check, or has no plan, failed once.
		$wrong = 1 if !$wrong && $parser->has_problems;
		my $skips = $parser->skipped;
		$passed += $parser->passed - $skips;
		$skipped += $skips + ($parser->skip_all ? 1 : 0);
		$failed += $wrong;
		push(@failures, _show_log($file)) if $wrong;
	}
	open(my $tally, '>>', $ENV{POSTPIPE_TALLY}) or die "POSTPIPE_TALLY: $!";
	print $tally "$passed $failed $skipped\n";
	close($tally);
	$self->SUPER::summary($aggregate);
	print @failures;
	return;
}

# PostgreSQL::Test::Utils writes it for each test, here from 16 on, or there. The result is what it says of the first failures.
sub _show_log
{
	my $name = 'regress_log_' . basename($_[0], '.pl');
	for my $path (map { "$_/$name" } grep { defined } $ENV{TESTLOGDIR}, ($ENV{TESTDIR} // ".") . "/tmp_check/log")
	{
		open(my $log, '<', $path) or next;
		my @lines = <$log>;
		my $shown = 0;
		my @failures = grep { $shown = /\bnot ok \d/ || ($shown && /^(?:\[.*?\]\(.*?\) )?(?:#|$)/) } @lines;
		# What stops the servers comes after the reason of a death and would hide it.
		@lines = grep { !/^(?:### |# (?:Running|No postmaster|Postmaster)|waiting for server|server st)/ } @lines;
		splice(@lines, 0, -(LOG_LINES)) if @lines > LOG_LINES;
		@failures = @lines if !@failures;
		splice(@failures, FAILURE_LINES) if @failures > FAILURE_LINES;
		print "\n--- the end of $name\n", @lines;
		return ("--- what failed first in $name\n", @failures);
	}
	return ();
}

1;
