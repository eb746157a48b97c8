# Postpipe::Test::Fault: lets a worker fail at a point of its code (src/fault.c has the points and the actions).
#
#   my $fault = Postpipe::Test::Fault->new($node);
#   $fault->set('after_commit:kill');       # once; 'after_commit:kill:3' three times
#   wait_for { $fault->fired } 'the worker was there';
#   $fault->set('');                        # nothing fails any more
package Postpipe::Test::Fault;

use strict;
use warnings;
use PostgreSQL::Test::Utils ();

sub new
{
	my ($class, $node) = @_;
	my $dir = $node->data_dir . '/postpipe';

	-d $dir or mkdir($dir, 0700) or die "$dir: $!";
	return bless { dir => $dir, fault => '' }, $class;
}

sub _file { my ($self) = @_; return "$self->{dir}/fault.$self->{fault}" }

# From now on, for every process.
sub set
{
	my ($self, $fault) = @_;

	$self->{fault} = $fault;
	unlink($self->_file);
	PostgreSQL::Test::Utils::append_to_file("$self->{dir}/fault.new", $fault);
	rename("$self->{dir}/fault.new", "$self->{dir}/fault") or die "$self->{dir}/fault: $!";
	return;
}

# How often it happened, since it was set.
sub fired { my ($self) = @_; return -s $self->_file // 0 }

1;
