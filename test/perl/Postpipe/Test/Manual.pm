# Postpipe::Test::Manual: runs the commands of a document of the project, in its order, as a reader would.
#
#   my $manual = Postpipe::Test::Manual->new($node, $redis, programs => { 'docker stop x' => sub { ... } }, before => sub { ... }, after => sub { ... });
#   my $blocks = $manual->run(slurp_file('docs/operations.md'));
#
# sql goes to psql in one piece, sh to a shell line by line, ini into postgresql.conf. A line of sh that is in `programs` calls that
# instead; redis-cli is told the port; make and apt-get are what CI does itself, and are not run. before and after are called with
# the code of each block and its language.
package Postpipe::Test::Manual;

use strict;
use warnings;
use Postpipe::Test::Wait;
use Test::More;

# Others than psql find the server by the environment.
sub new
{
	my ($class, $node, $redis, %opt) = @_;
	@ENV{qw(PGHOST PGPORT PGDATABASE)} = ($node->host, $node->port, 'postgres');
	return bless { node => $node, redis => $redis, programs => {}, before => sub { }, after => sub { }, %opt }, $class;
}

# Returns how many blocks there were.
sub run
{
	my ($self, $text) = @_;
	my $n = 0;
	my %run = (sql => \&_sql, sh => \&_sh, ini => \&_ini);
	while ($text =~ /^ *```(sh|sql|ini)\n(.*?)^ *```$/msg)
	{
		my ($language, $code) = ($1, $2);
		$n++;
		$self->{before}->($code, $language);
		$run{$language}->($self, $code, $n);
		$self->{after}->($code, $language);
	}
	return $n;
}

sub _sql
{
	my ($self, $code, $n) = @_;
	my ($rc, undef, $err) = $self->{node}->psql('postgres', $code, on_error_stop => 1);
	is($rc, 0, "SQL block $n runs") or diag("$code\n$err");
	return unlike($err, qr/WARNING|ERROR/, 'without a warning');
}

sub _sh
{
	my ($self, $code, $n) = @_;
	return like($code, qr/^(make|apt-get)/, "block $n is what CI does itself") if $code =~ /^(?:make|apt-get) /;
	for my $line (split /\n/, $code)
	{
		if (my $program = $self->{programs}->{$line})
		{
			$program->();
			pass("done: $line");
			next;
		}
		$line =~ s/^redis-cli /redis-cli -p @{[ $self->{redis}->port ]} /;
		like($line, qr/^(?:redis-cli|psql) /, "it can be run: $line") or next;
		my $said = qx($line);
		is($?, 0, '... and it runs');
		unlike($said, qr/^(?:\(error\)|ERR|NOGROUP|WRONGTYPE|NOPERM)/m, '... without an error');
	}
	return;
}

# With the Redis that there is. A restart, where one is needed, is a command of its own.
sub _ini
{
	my ($self, $code) = @_;
	$code =~ s{redis://localhost:6379}{$self->{redis}->url}e;
	$self->{node}->append_conf('postgresql.conf', $code);
	return $self->{node}->reload;
}

1;
