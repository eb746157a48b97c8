# Entries of 100 bytes to 1 MB in a table of two columns, against COPY.
package Bench::Section::Sizes;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Rounds;
use Cwd qw(getcwd);

# Bytes, and which part of --entries: 100 MB of the large ones.
my @kinds = ([ 100, 1 ], [ 1_000, 1 / 2 ], [ 10_000, 1 / 20 ], [ 1_000_000, 1 / 2000 ]);
my %title = (100 => '100 bytes', 1_000 => '1 kB', 10_000 => '10 kB', 1_000_000 => '1 MB');

sub run
{
	my ($stage) = @_;
	my $rounds = Bench::Rounds->new($stage, 'sizes of entries, one worker against COPY');
	$stage->sql('CREATE TABLE items (id text PRIMARY KEY, body text)');
	my $pipeline = Bench::Pipeline->create($stage, 'items', "target => 'items'");
	my @contenders;

	for my $kind (@kinds)
	{
		my ($bytes, $share) = @$kind;
		my $entries = $stage->entries($share);
		my $file = "generated.items.$bytes";
		$stage->run('./items', $entries, $stage->option('seed'), $pipeline->{stream}, $bytes, "$file.resp", "$file.copy");
		push @contenders, "postpipe_$bytes" => sub {
			$stage->load_stream($pipeline->{stream}, "$file.resp", $entries);
			$stage->empty('items');
			my $result = $pipeline->drain;
			verify($stage, $entries, $bytes);
			return $result;
		};
		push @contenders, "copy_$bytes" => sub {
			$stage->empty('items');
			my $result = $stage->timed_sql("COPY items FROM '" . getcwd() . "/$file.copy'");
			verify($stage, $entries, $bytes);
			return { %$result, entries => $entries };
		};
	}
	$rounds->compare(contenders => \@contenders);
	$pipeline->drop;
	$stage->sql('DROP TABLE items');

	for my $bytes (map { $_->[0] } @kinds)
	{
		$rounds->ratio("size_${bytes}_to_copy", "$title{$bytes}, postpipe / COPY", "postpipe_$bytes", "copy_$bytes")
		  ->figure("size_${bytes}_megabytes", '... bytes per second', 'MB/s',
			sub { $_[0]{"postpipe_$bytes"}{rate} * $bytes / 1e6 })
		  ->contender("postpipe_$bytes", "$title{$bytes}: postpipe")
		  ->contender("copy_$bytes", "$title{$bytes}: COPY");
	}
	return $rounds->result;
}

# The same rows for both.
sub verify
{
	my ($stage, $entries, $bytes) = @_;
	my ($count, $sum) = @{ ($stage->rows('SELECT count(*), sum(hashtextextended(id || body, 0)) FROM items'))[0] };
	my $known = \$stage->{checksums}{"items $bytes"};

	die "the table items has $count rows, not $entries\n" if $count != $entries;
	$$known //= $sum;
	die "the rows of items differ between postpipe and COPY\n" if $$known ne $sum;
	return;
}

1;
