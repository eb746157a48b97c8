# Report::Prometheus: the HTTP API of Prometheus. What goes wrong is said in words, with what to check.
#
#   my $prometheus = Report::Prometheus->new('http://localhost:9090');
#   $prometheus->range($promql, $from, $to, $step);        # series: { metric => labels, points => [[time, value], ...] }
#   $prometheus->at($promql, $time);                       # the same; of an instant vector one point each
package Report::Prometheus;

use strict;
use warnings;
use HTTP::Tiny;
use JSON::PP;

sub new
{
	my ($class, $url) = @_;
	die "PROMETHEUS=$url is no URL such as http://localhost:9090\n" unless $url =~ m{\Ahttps?://[^/]};
	return bless { url => $url =~ s{/+\z}{}r, http => HTTP::Tiny->new(timeout => 60) }, $class;
}

# For people: without a password that the URL may have.
sub name { my ($self) = @_; return $self->{url} =~ s{//[^/@]*@}{//}r }

sub range
{
	my ($self, $promql, $from, $to, $step) = @_;
	return $self->_series('query_range', query => $promql, start => $from, end => $to, step => $step);
}

sub at
{
	my ($self, $promql, $time) = @_;
	return $self->_series('query', query => $promql, time => $time);
}

sub _series
{
	my ($self, $path, %form) = @_;
	return map { { metric => $_->{metric}, points => known($_->{values} // [ $_->{value} ]) } } @{ $self->_get($path, %form)->{result} };
}

# What is no number is not known: a quantile of nothing is NaN.
sub known
{
	my ($values) = @_;
	return [ map { [ $_->[0] + 0, $_->[1] + 0 ] } grep { $_->[1] !~ /nan|inf/i } @$values ];
}

sub _get
{
	my ($self, $path, %form) = @_;
	my $name = $self->name;
	my $answer = $self->{http}->get("$self->{url}/api/v1/$path?" . $self->{http}->www_form_urlencode(\%form));
	my $json = eval { decode_json($answer->{content}) };

	return $json->{data} if $answer->{success} && ref $json eq 'HASH' && ($json->{status} // '') eq 'success';
	# HTTP::Tiny's own number for an answer that did not come.
	die "could not reach Prometheus at $name: " . _line($answer->{content}) . "\nCheck that it runs there, and PROMETHEUS.\n"
	  if $answer->{status} == 599;
	die "Prometheus at $name refused a query: $json->{error}\nThe query was: $form{query}\nCheck DATNAME and PIPELINE, which are regular expressions, and the range of time.\n"
	  if ref $json eq 'HASH' && $json->{error};
	die "$name does not answer as Prometheus does: " . _line("$answer->{status} $answer->{reason}") .
	  "\nCheck PROMETHEUS; it is the URL of its page, without /api/v1.\n";
}

sub _line { my ($text) = @_; return join ' ', split ' ', $text }

1;
