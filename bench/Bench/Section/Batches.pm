# Batches from 1 to 10,000 entries; one entry at a time against single-row inserts of pgbench.
package Bench::Section::Batches;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;

# Which part of --entries: a batch of one entry takes longer for each.
my %share = (1 => 1 / 30, 10 => 1 / 6, 100 => 1 / 3, 1000 => 2 / 3, 10_000 => 2 / 3);

sub run
{
	my ($stage) = @_;
	my $pipeline = Bench::Pipeline->posts($stage);
	my $rounds = Bench::Rounds->new($stage, 'batch sizes, one worker');
	my @sizes = sort { $a <=> $b } keys %share;
	my $of = sub {
		my ($size) = @_;
		my $posts = Bench::Posts->new($stage, entries => $stage->entries($share{$size}));
		return "batch_$size" => sub {
			$posts->publish;
			$stage->empty('posts');
			$pipeline->configure(options => qq({"batch_size": $size}));
			my $result = $pipeline->drain;
			$posts->verify('posts', "batches of $size");
			return $result;
		};
	};

	write_script();
	$rounds->compare(contenders => [ (map { $of->($_) } @sizes), pgbench => sub { pgbench($stage) } ]);
	$pipeline->configure;

	$rounds->ratio('batch_1_to_pgbench', 'batches of 1 / single-row inserts of pgbench', 'batch_1', 'pgbench', 'at least', 0.8)
	  ->ratio('batch_10000_to_1000', 'batches of 10,000 / of 1000', 'batch_10000', 'batch_1000');
	$rounds->contender("batch_$_", "batches of $_") for @sizes;
	return $rounds->contender('pgbench', 'pgbench, one client, prepared INSERT of one row')->result;
}

# A row like those of the posts: random and unique id, rising number.
sub write_script
{
	open(my $script, '>', 'insert.sql') or die "could not create the script of pgbench: $!\n";
	my $text = 'релиз PostgreSQL технологии 🚀 инфляция прогноз эксперты open ставка рост прибыль рынок ' x 4;
	printf {$script} <<'END', Bench::Posts::columns(), $text;
\set n :n + 1
INSERT INTO posts (%s)
VALUES ('1761685200000-' || :n, md5(:n::text)::uuid::text, 'c1ec5a50-7a6f-4d1c-9a34-94b1b9d5a0d5', :n, '%s', '[]',
	'2025-10-29T00:00:00+03:00', '2025-10-28T21:00:05Z', 'https://t.me/channel_17/1', false, false, 26763, 286, 640);
END
	return close($script);
}

sub pgbench
{
	my ($stage) = @_;
	my $rows = $stage->entries($share{1});
	$stage->empty('posts');
	my $output = $stage->run("pgbench -n -M prepared -c 1 -D n=0 -f insert.sql -t $rows postgres 2>&1");
	my ($rate) = $output =~ /tps = ([\d.]+)/ or die "pgbench: $output\n";
	my $count = $stage->sql('SELECT count(*) FROM posts');
	die "pgbench: the table has $count rows, not $rows\n" if $count != $rows;
	return { entries => $rows, seconds => $rows / $rate };
}

1;
