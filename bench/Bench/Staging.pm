# Bench::Staging: posts in a table of their own, and SQL statements that read them from there: what postpipe is compared with
# where COPY cannot do the same.
package Bench::Staging;

use strict;
use warnings;
use Bench::Posts;

my $batch = 1000;

sub new
{
	my ($class, $stage, $posts, $table) = @_;
	$posts->staging_table($table);
	return bless { stage => $stage, posts => $posts, table => $table }, $class;
}

# The ON CONFLICT clause of the statement that the pipeline posts runs.
sub merge
{
	my ($self) = @_;
	my $statement = $self->{stage}->sql("SELECT statement FROM postpipe_pipelines WHERE pipeline = 'posts'");
	my ($merge) = $statement =~ /^(ON CONFLICT .*?)(?:^RETURNING|\z)/ms or die "the statement of posts has no ON CONFLICT\n";
	return $merge;
}

# A statement, in which %1$s stands for the columns and %2$s for a WHERE clause, over all rows.
sub whole
{
	my ($self, $statement) = @_;
	return $self->timed(sprintf $statement, Bench::Posts::columns(), '');
}

# The same over 1000 rows at a time, each in a transaction that waits for the disk. Plans are kept, as those of postpipe.
sub in_batches
{
	my ($self, $statement) = @_;
	my $last = $self->{posts}{entries};
	my $each = sprintf $statement, Bench::Posts::columns(), "WHERE ord BETWEEN first AND first + $batch - 1";
	return $self->timed(<<~"END");
		DO \$do\$
		DECLARE
			first bigint := 1;
		BEGIN
			WHILE first <= $last LOOP
				$each;
				COMMIT;
				first := first + $batch;
			END LOOP;
		END \$do\$
		END
}

sub timed
{
	my ($self, $sql) = @_;
	return { %{ $self->{stage}->timed_sql($sql) }, entries => $self->{posts}{entries} };
}

sub drop
{
	my ($self) = @_;
	$self->{stage}->sql("DROP TABLE $self->{table}");
	return;
}

1;
