# What an entry holds is in no line of the server's log, whatever it makes fail and however much is logged.
# TAP, because it reads the log of a server of its own.

use strict;
use warnings;
use Postpipe::Test;
use Postpipe::Test::Pipelines qw(definition);

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('log', redis => $redis, conf => join("\n", 'postpipe.max_retries = 0', 'log_statement = all', 'log_min_duration_statement = 0',
	'log_error_verbosity = verbose', 'log_min_error_statement = debug5', 'log_lock_waits = on', 'deadlock_timeout = 100ms', 'log_parameter_max_length_on_error = -1'));
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE TABLE fussy (v text, CONSTRAINT fussy CHECK (v NOT LIKE '%check%'));
CREATE FUNCTION fussy() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.v LIKE '%moment%' THEN
		RAISE 'not now: %', NEW.v USING ERRCODE = '40001', DETAIL = NEW.v, HINT = NEW.v;
	ELSIF NEW.v LIKE '%pipeline%' THEN
		EXECUTE format('SELECT FROM %I', NEW.v);
	END IF;
	RETURN NEW;
END $$;
CREATE TRIGGER fussy BEFORE INSERT ON fussy FOR EACH ROW EXECUTE FUNCTION fussy();
CREATE TABLE number (id int);
SQL

# --- One entry that is bad is a letter, and no line.
make('letter', 'fussy');
$redis->xadd('stream:letter', v => $_) for 'SECRET check', 'good';
wait_sql($node, 'postgres', q(SELECT message || detail LIKE '%SECRET%' FROM postpipe_dlq), 't', 'a letter has it');

# --- Too many of them, an error of the moment, one of the pipeline's kind: the view has the message, the log its SQLSTATE.
make('many', 'number', enabled => 'false');
$redis->pipeline(map { [ 'XADD', 'stream:many', '*', id => "SECRET$_" ] } 1 .. 300);
sql(q(SELECT postpipe_resume('many')));
shows('many', 'failed', 'error_threshold', '22P02');
is(scalar log_lines($node, qr/HINT:.*error_threshold/), 1, '... with our own hint');
make('moment', 'fussy');
$redis->xadd('stream:moment', v => 'SECRET moment');
shows('moment', 'retrying', 'sqlstate_40001', '40001');
make('pipeline', 'fussy', options => '{"max_retries": 1000}');
$redis->xadd('stream:pipeline', v => 'SECRET pipeline');
shows('pipeline', 'failed', 'sqlstate_42P01', '42P01');

# --- What is wrong with the definition holds nothing of an entry, and is said.
make('gone', 'number');
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'gone'), 'idle', 'gone: idle');
sql('DROP TABLE number');
$redis->xadd('stream:gone', id => 'SECRET');
wait_sql($node, 'postgres', q(SELECT state FROM postpipe_stats WHERE pipeline = 'gone'), 'failed', 'gone: failed');
wait_for { log_lines($node, qr/pipeline "gone", worker 1: failed: target table public.number .* does not exist/) } 'a table that is gone is named in the log';

is(join("\n", map { substr $_, 0, 200 } grep { !/LOG:  [0-9A-Z]+: statement:/ } log_lines($node, qr/SECRET/)), '', 'nothing of an entry is in the log');
is(join("\n", log_lines($node, qr/STATEMENT:.*SECRET/)), '', '... nor as the statement of an error');
pp_balanced($node);
$node->stop;
done_testing();

sub make
{
	my ($name, $table, %opt) = @_;
	return sql(definition($name, target => $table, %opt));
}

sub shows
{
	my ($name, $state, $code, $sqlstate) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_sql($node, 'postgres', "SELECT state, reason_code, reason LIKE '%SECRET%', last_error LIKE '%SECRET%' FROM postpipe_stats WHERE pipeline = '$name'", "$state|$code|t|t", "$name: the view has the message");
	return is(scalar log_lines($node, qr/pipeline "$name", worker 1: $state: SQLSTATE $sqlstate of an entry \($code\)/), 1, '... the log has SQLSTATE and reason code');
}
