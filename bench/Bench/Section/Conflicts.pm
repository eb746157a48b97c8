# Newer versions of posts that the table has already: of all of them, and of every second one.
package Bench::Section::Conflicts;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;
use Bench::Staging;

sub run
{
	my ($stage) = @_;
	my $entries = $stage->entries(1 / 2);
	my $old = Bench::Posts->new($stage, entries => $entries);
	my $new = Bench::Posts->new($stage, entries => $entries, version => 2);
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, "upserts of rows that are there, $entries posts");
	my $staging = Bench::Staging->new($stage, $new, 'posts_new');
	my $upsert = "INSERT INTO posts AS t (%1\$s) SELECT %1\$s FROM posts_new %2\$s " . $staging->merge;

	# All, or every second row is there before; what is there afterwards is the same.
	my $contender = sub {
		my ($share, $name, $load) = @_;
		return "${share}_$name" => sub {
			$new->publish if $name eq 'postpipe';
			$stage->sql('TRUNCATE posts');
			$old->copy('posts', $share eq 'half' ? 'awk NR%2' : undef);
			$stage->sql('VACUUM ANALYZE posts');
			$stage->write_out;
			my $result = $load->();
			$new->verify('posts', $name);
			return $result;
		};
	};

	$rounds->compare(contenders => [
		map {
			(
				$contender->($_, 'postpipe', sub { $pipeline->drain }),
				$contender->($_, 'sql', sub { $staging->in_batches($upsert) }),
				$contender->($_, 'sql_whole', sub { $staging->whole($upsert) }))
		} qw(all half)
	]);
	$staging->drop;

	my %title = (all => 'all conflict', half => 'every second one conflicts');
	for my $share (qw(all half))
	{
		$rounds->ratio("conflicts_${share}_to_sql", "$title{$share}, postpipe / INSERT ... ON CONFLICT", "${share}_postpipe",
			"${share}_sql", 'at least', 0.9)
		  ->ratio("conflicts_${share}_to_sql_whole", '... / the same in one transaction', "${share}_postpipe", "${share}_sql_whole")
		  ->contender("${share}_postpipe", "$title{$share}: postpipe")
		  ->contender("${share}_sql", "$title{$share}: INSERT, transactions of 1000")
		  ->contender("${share}_sql_whole", "$title{$share}: INSERT, one transaction");
	}
	return $rounds->note('INSERT ... SELECT reads a table of the same rows, in the order of the stream, with the ON CONFLICT'
		  . ' clause of the pipeline\'s own statement. The target is for transactions of 1000, as postpipe makes them.')->result;
}

1;
