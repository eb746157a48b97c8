# What COPY cannot do, or is not made for: a row trigger, a table without a key, a statement that counts. Each against plain
# SQL that does the same from a table of the same rows, in transactions of 1000.
package Bench::Section::Statements;

use strict;
use warnings;
use Bench::Pipeline;
use Bench::Posts;
use Bench::Rounds;
use Bench::Staging;

sub run
{
	my ($stage) = @_;
	my $entries = $stage->entries(1 / 3);
	my $posts = Bench::Posts->new($stage, entries => $entries);
	my $staging = Bench::Staging->new($stage, $posts, 'posts_staged');
	my $rounds = Bench::Rounds->new($stage, "other statements against plain SQL, $entries posts");
	my @kinds = (with_trigger($stage, $staging), without_key($stage), counting($stage));
	my @contenders;

	for my $kind (@kinds)
	{
		my ($name, $pipeline, $table, $check) = @$kind{qw(name pipeline table check)};
		my $same = Bench::Posts->new($stage, entries => $entries, stream => $pipeline->{stream});
		my $checked = sub {
			my ($load) = @_;
			$stage->empty($table);
			my $result = $load->();
			my $found = $stage->sql("SELECT $check FROM $table");
			die "$name: $table has $found entries, not $entries\n" if $found != $entries;
			return $result;
		};
		push @contenders, "${name}_postpipe" => sub { $same->publish; $checked->(sub { $pipeline->drain }) };
		push @contenders, "${name}_sql" => sub { $checked->(sub { $staging->in_batches($kind->{sql}) }) };
	}
	$rounds->compare(contenders => \@contenders);

	for my $kind (@kinds)
	{
		my ($name, $title) = @$kind{qw(name title)};
		$kind->{pipeline}->drop;
		$stage->sql("DROP TABLE $kind->{table}");
		$rounds->ratio("${name}_to_sql", "$title, postpipe / SQL", "${name}_postpipe", "${name}_sql")
		  ->contender("${name}_postpipe", "$title: postpipe")
		  ->contender("${name}_sql", "$title: SQL");
	}
	$staging->drop;
	$stage->sql('DROP FUNCTION bench_fill_url');
	return $rounds->result;
}

# The table posts again, with a trigger that changes each row.
sub with_trigger
{
	my ($stage, $staging) = @_;
	$stage->sql('CREATE TABLE triggered (LIKE posts INCLUDING ALL)');
	$stage->sql(<<~'END');
		CREATE FUNCTION bench_fill_url() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN NEW.url := NEW.telegram_post_url; RETURN NEW; END $$
		END
	$stage->sql('CREATE TRIGGER fill_url BEFORE INSERT OR UPDATE ON triggered FOR EACH ROW EXECUTE FUNCTION bench_fill_url()');
	return {
		name => 'trigger', title => 'a row trigger', table => 'triggered', check => 'count(url)',
		pipeline => Bench::Pipeline->like_posts($stage, 'triggered', 'triggered'),
		sql => 'INSERT INTO triggered AS t (%1$s) SELECT %1$s FROM posts_staged %2$s ' . $staging->merge
	};
}

sub without_key
{
	my ($stage) = @_;
	$stage->sql('CREATE TABLE views (entry_id text, channel_id text, telegram_message_id bigint, content text,'
		  . ' posted_at timestamptz, views_count bigint)');
	return {
		name => 'append', title => 'append only, no key', table => 'views', check => 'count(*)',
		pipeline => Bench::Pipeline->create($stage, 'views',
			q(target => 'views', columns => '{"entry_id": {"fields": ["$id"]}, "content": {"fields": ["text"]}}')),
		sql => 'INSERT INTO views SELECT entry_id, channel_id, telegram_message_id, content, posted_at, views_count'
		  . ' FROM posts_staged %2$s'
	};
}

# A number per channel and hour, so that a batch has several entries of one key.
sub counting
{
	my ($stage) = @_;
	my $merge = 'ON CONFLICT (channel_id, hour) DO UPDATE SET n = c.n + excluded.n';
	$stage->sql('CREATE TABLE counts (channel_id text, hour timestamptz, n bigint NOT NULL, PRIMARY KEY (channel_id, hour))');
	return {
		name => 'counting', title => 'counting per channel and hour', table => 'counts', check => 'sum(n)',
		pipeline => Bench::Pipeline->create($stage, 'counts', <<~"END"),
			statement => \$\$
				INSERT INTO counts AS c SELECT event->>'channel_id', date_trunc('hour', (event->>'posted_at')::timestamptz), count(*)
				FROM postpipe_batch GROUP BY 1, 2 $merge \$\$
			END
		sql => "INSERT INTO counts AS c SELECT channel_id, date_trunc('hour', posted_at), count(*)"
		  . " FROM posts_staged %2\$s GROUP BY 1, 2 $merge"
	};
}

1;
