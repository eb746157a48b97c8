# Postpipe::Test::Resp: the Redis protocol (RESP2), both directions. Values are strings (bytes), undef and array
# references; an error reply is an object of Postpipe::Test::Resp::Error that prints as its text.
package Postpipe::Test::Resp;

use strict;
use warnings;

my $INCOMPLETE = "incomplete\n";

# A command, or an array reply, of these strings.
sub encode
{
	return join '', '*' . @_ . "\r\n", map { defined $_ ? '$' . length($_) . "\r\n$_\r\n" : "\$-1\r\n" } @_;
}

# Takes one complete value off the front of the buffer: returns [value], or nothing while the buffer has only a part.
sub take
{
	my ($buffer) = @_;
	my $position = 0;
	my $value = eval { _value($buffer, \$position) };

	if ($@)
	{
		die $@ unless $@ eq $INCOMPLETE;
		return;
	}
	substr($$buffer, 0, $position, '');
	return [$value];
}

sub _value
{
	my ($buffer, $position) = @_;
	my $end = index($$buffer, "\r\n", $$position);

	die $INCOMPLETE if $end < 0;
	my $type = substr($$buffer, $$position, 1);
	my $rest = substr($$buffer, $$position + 1, $end - $$position - 1);
	$$position = $end + 2;

	return $rest if $type eq '+' || $type eq ':';
	return Postpipe::Test::Resp::Error->new($rest) if $type eq '-';
	if ($type eq '$')
	{
		return undef if $rest < 0;
		die $INCOMPLETE if length($$buffer) < $$position + $rest + 2;
		my $value = substr($$buffer, $$position, $rest);
		$$position += $rest + 2;
		return $value;
	}
	if ($type eq '*')
	{
		return $rest < 0 ? undef : [ map { _value($buffer, $position) } 1 .. $rest ];
	}
	die "not RESP: $type$rest\n";
}

package Postpipe::Test::Resp::Error;

use overload '""' => sub { ${ $_[0] } }, fallback => 1;

sub new
{
	my ($class, $text) = @_;
	return bless \$text, $class;
}

1;
