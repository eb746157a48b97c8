# From XADD until another session sees the row, at several rates, against the C client and against an INSERT.
package Bench::Section::Latency;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Rounds;
use JSON::PP;

my $pause_ms = 20;
my @rates = (1, 100, 1_000, 10_000);
my $client_stream = 'stream:bench:client';
my $client_group = 'bench_client';

sub run
{
	my ($stage) = @_;
	my $pipeline = Bench::Pipeline->posts($stage);
	my $single = $stage->option('latency');
	my $rounds = Bench::Rounds->new($stage, 'XADD to visible row');
	my %stream = (postpipe => $pipeline->{stream}, client => $client_stream);
	my %table = (postpipe => 'posts', client => 'posts_client');
	my %with = (postpipe => sub { with_postpipe($stage, $pipeline, @_) }, client => sub { with_client($stage, @_) });

	$stage->sql('CREATE TABLE posts_client (LIKE posts INCLUDING ALL)');
	my @contenders = (insert_single => sub {
		$stage->empty('posts_client');
		return decode_json($stage->run('./latency insert posts_client', $single, $pause_ms));
	});
	for my $who (qw(postpipe client))
	{
		my @where = ($stage->redis_port, $stream{$who}, $table{$who});
		push @contenders, "${who}_single" => sub {
			return decode_json($with{$who}->(sub { $stage->run('./latency stream', @where, $single, $pause_ms) }));
		};
		for my $rate (@rates)
		{
			my $count = $rate * ($stage->quick ? 1 : $rate == 1 ? 10 : 5);
			push @contenders, "${who}_$rate" => sub {
				my $result = decode_json($with{$who}->(sub { $stage->run('./paced', @where, $rate, $count) }));
				$stage->progress(sprintf '   %-16s p50 %.2f, p99 %.2f ms', "${who}_$rate", @$result{qw(p50 p99)});
				return $result;
			};
		}
	}
	$rounds->compare(contenders => \@contenders);
	$stage->sql('DROP TABLE posts_client');
	$stage->redis("DEL $client_stream");
	describe($rounds);
	return $rounds
	  ->note("Single entries: $single per round, $pause_ms ms apart, the pipeline idle before each; the INSERT with the same pauses."
		  . ' With so few, p99.9 is the slowest; so it is at 1/s, with 10 entries per round.')
	  ->note('Single entries are exact to one round trip of the watcher (some 0.05 ms), the others to the time between two looks.')
	  ->result;
}

sub describe
{
	my ($rounds) = @_;
	my %share = (p50 => 'p50', p99 => 'p99', p999 => 'p99.9');
	my @targets = ('at most', 10);

	$rounds->figure('single_p50_to_insert', 'single, p50, postpipe / INSERT and commit', '',
		sub { $_[0]{postpipe_single}{p50} / $_[0]{insert_single}{p50} }, 'at most', 1.5);
	$rounds->figure("p50_to_client_$_", ($_ eq 'single' ? 'single' : "$_/s") . ', p50, postpipe / C client', '',
		ratio_of("postpipe_$_", "client_$_")) for 'single', @rates;
	for my $who (qw(postpipe client insert))
	{
		for my $rate ('single', $who eq 'insert' ? () : @rates)
		{
			for my $share (qw(p50 p99 p999))
			{
				$rounds->figure("${who}_${rate}_$share", "$who, " . ($rate eq 'single' ? $rate : "$rate/s") . ", $share{$share}", 'ms',
					sub { $_[0]{"${who}_$rate"}{$share} },
					$who eq 'postpipe' && $rate eq '1000' && $share eq 'p99' ? @targets : ());
			}
		}
	}
	for my $rate (@rates)
	{
		my $of = sub { my ($name) = @_; return sub { $_[0]{"postpipe_$rate"}{$name} } };
		$rounds->figure("look_p99_$rate", "time between two looks at $rate/s, p99", 'ms', $of->('look_p99'))
		  ->figure("rate_$rate", "rate that was reached, of $rate/s", '/s', $of->('rate'));
	}
	return;
}

sub ratio_of
{
	my ($one, $other) = @_;
	return sub { $_[0]{$one}{p50} / $_[0]{$other}{p50} };
}

sub with_postpipe
{
	my ($stage, $pipeline, $measure) = @_;
	$stage->empty('posts');
	$stage->redis("XTRIM $pipeline->{stream} MAXLEN 0");
	$pipeline->resume;
	$pipeline->wait_state('idle');
	my $json = $measure->();
	# Until all is acknowledged: what stayed pending would be delivered again.
	$pipeline->wait_acknowledged($pipeline->last_id);
	$pipeline->pause;
	return $json;
}

sub with_client
{
	my ($stage, $measure) = @_;
	$stage->empty('posts_client');
	$stage->redis("DEL $client_stream");
	$stage->redis("XGROUP CREATE $client_stream $client_group 0 MKSTREAM");
	my $pid = $stage->start_program('./client', $stage->redis_port, $client_stream, $client_group, 'posts_client',
		$stage->option('batch'), 'follow');
	$stage->wait_for('the client', sub { $stage->redis('INFO clients') =~ /blocked_clients:[1-9]/ });
	my $json = eval { $measure->() };
	my $error = $@;
	$stage->stop_program($pid);
	return $json // die $error;
}

1;
