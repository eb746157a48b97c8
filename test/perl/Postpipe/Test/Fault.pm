# Postpipe::Test::Fault: lets a worker fail at a point of its code (src/fault.c has the points and the actions).
#
#   my $fault = Postpipe::Test::Fault->new($node);
#   $fault->set('after_commit:kill');       # once; 'after_commit:kill:3' three times
#   wait_for { $fault->fired } 'the worker was there';
#   $fault->set('');                        # nothing fails any more
package Postpipe::Test::Fault;

use strict;
use warnings;

sub new
{
	my ($class, $node) = @_;
	return bless { node => $node, fault => '' }, $class;
}

sub _file { my ($self) = @_; return $self->{node}->data_dir . "/postpipe/fault.$self->{fault}" }

sub set
{
	my ($self, $fault) = @_;

	$self->{fault} = $fault;
	unlink($self->_file);
	$self->{node}->safe_psql('postgres', "ALTER SYSTEM SET postpipe.fault = '$fault'");
	$self->{node}->safe_psql('postgres', 'SELECT pg_reload_conf()');
	return;
}

# How often it happened, since it was set.
sub fired { my ($self) = @_; return -s $self->_file // 0 }

1;
