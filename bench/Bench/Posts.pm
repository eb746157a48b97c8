# Bench::Posts: a number of posts, as entries of a stream and as rows for COPY, and what has to be in the table afterwards.
package Bench::Posts;

use strict;
use warnings;
use Cwd qw(getcwd);

my $columns = 'entry_id, id, channel_id, telegram_message_id, content, media_urls, posted_at, created_at, telegram_post_url,'
  . ' has_media, is_edited, views_count, forwards_count, reactions_count';

# format and version as generate.c explains them; first is the number of the first post.
sub new
{
	my ($class, $stage, %arg) = @_;
	my $self = bless { stage => $stage, format => 'A', version => 1, first => 0, stream => 'stream:posts:parsed', %arg }, $class;
	my $name = join '.', 'generated', @$self{qw(entries format version first)}, $self->{stream} =~ tr/:/_/r;

	@$self{qw(resp rows)} = ("$name.resp", "$name.copy");
	if (!-e $self->{rows})
	{
		$stage->progress("generating $self->{entries} posts, format $self->{format}") if !$self->{first};
		$stage->run('./generate', $self->{entries}, $stage->option('seed'), @$self{qw(stream format version first resp rows)});
	}
	return $self;
}

sub columns { return $columns }

# What the sections have generated takes room: each begins without it.
sub forget { return unlink glob 'generated.*' }

sub publish
{
	my ($self) = @_;
	$self->{stage}->load_stream(@$self{qw(stream resp entries)});
	return;
}

# The server reads the file itself, as fast as PostgreSQL can: nothing travels through a connection. With a filter, the rows
# that this program lets through.
sub copy
{
	my ($self, $table, $filter) = @_;
	my $file = getcwd() . "/$self->{rows}";
	my $source = defined $filter ? "PROGRAM '$filter $file'" : "'$file'";
	my $took = $self->{stage}->timed_sql("COPY $table ($columns) FROM $source");
	return { %$took, entries => $self->{entries} };
}

# The same rows in a table of their own, numbered in their order, for statements that read them from there.
sub staging_table
{
	my ($self, $table) = @_;
	my $stage = $self->{stage};
	$stage->sql("DROP TABLE IF EXISTS $table");
	$stage->sql("CREATE TABLE $table (LIKE posts INCLUDING DEFAULTS, ord bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY)");
	$self->copy($table);
	$stage->sql("VACUUM ANALYZE $table");
	return;
}

# All rows, and the same values in them as after any other run with these posts; entry_id differs by nature.
sub verify
{
	my ($self, $table, $who, $what) = @_;
	my ($stage, $entries) = @$self{qw(stage entries)};
	my $checksum = \$stage->{checksums}{ join '.', $what // 'rows', @$self{qw(entries version first)} };
	my $values = $columns =~ s/^entry_id, //r;
	my ($count, $sum) = @{ ($stage->rows("SELECT count(*), sum(hashtextextended(ROW($values)::text, 0)) FROM $table"))[0] };

	die "$who: the table has $count rows, not $entries\n" if $count != $entries;
	$$checksum //= $sum;
	die "$who: the rows differ from those of the other contenders\n" if $sum ne $$checksum;
	return;
}

1;
