# Functions that look into tables of the extension do that as its owner. Afterwards the session is its own role again, without what
# that owner may do, and without the restrictions that go with it; also after an error, and where one of them uses another one.
# TAP, because each call takes a session of its own: what a call leaves behind shows in the next command only.
use strict;
use warnings;
use Postpipe::Test;

my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('user', redis => $redis);
$node->safe_psql('postgres', <<'SQL');
CREATE EXTENSION postpipe;
CREATE TABLE item (id int PRIMARY KEY, v text);
CREATE ROLE monitor LOGIN IN ROLE pg_monitor;
CREATE ROLE app LOGIN;
GRANT CREATE, USAGE ON SCHEMA public TO app;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO app, monitor;
ALTER TABLE item OWNER TO app;
SQL
$node->safe_psql('postgres', 'SELECT postpipe_create_pipeline($$main$$, stream => $$s$$, target => $$item$$)', extra_params => [ '-U', 'app' ]);
$node->safe_psql('postgres', q(SELECT postpipe_wait_state('main', 'idle')));
$redis->xadd('s', id => $_, v => 'x') for 1 .. 3;
$redis->xadd('s', id => 'none', v => 'x');
wait_sql($node, 'postgres', 'SELECT count(*) FROM postpipe_dlq', 1, 'entries are there, and a dead letter');

# Whatever a role may read or call without an argument, and what a user calls most.
my %calls = (
	monitor => [ split /\n/, $node->safe_psql('postgres', <<'SQL') ],
SELECT 'SELECT * FROM ' || c.oid::regclass FROM pg_class AS c JOIN pg_depend AS d ON d.objid = c.oid JOIN pg_extension AS e ON e.oid = d.refobjid
WHERE d.deptype = 'e' AND e.extname = 'postpipe' AND c.relkind = 'v'
UNION ALL
SELECT 'SELECT * FROM ' || p.oid::regproc || '()' FROM pg_proc AS p JOIN pg_depend AS d ON d.objid = p.oid JOIN pg_extension AS e ON e.oid = d.refobjid
WHERE d.deptype = 'e' AND e.extname = 'postpipe' AND p.pronargs = p.pronargdefaults AND p.prorettype <> 'trigger'::regtype
ORDER BY 1
SQL
	app => [ map { "SELECT * FROM $_" } q(postpipe_check('main')), q(postpipe_test('main', 10, from_id => '0-0')), q(postpipe_peek('main')), q(postpipe_ingest('main', '{"id": 9, "v": "y"}')),
		q(postpipe_ingest('main', '{"id": "none"}')), q(postpipe_backfill('main', '-', '+')), q(postpipe_replay('main')), q(postpipe_discard('main', reason => 'why')),
		q(postpipe_skip('main', '1-1', 'why')), q(postpipe_consumers('main')), q(postpipe_pending('main')), q(postpipe_pause('main', 'why')), q(postpipe_rewind('main', '0-0')),
		q(postpipe_resume('main')), q(postpipe_wait_state('main', 'idle')), q(postpipe_alter_pipeline('main', workers => 2)), q(postpipe_drop_pipeline('main', discard_dead => true)) ]);

for my $role (sort keys %calls)
{
	cmp_ok(scalar @{ $calls{$role} }, '>', 10, "$role has something to call");
	for my $call (@{ $calls{$role} })
	{
		my ($out, $err);
		$node->psql('postgres', "SET search_path = public, pg_temp;\n\\o /dev/null\n$call;\n\\o\nSELECT concat_ws(' ', current_user, current_setting('search_path'));\nSET ROLE NONE;\n",
			stdout => \$out, stderr => \$err, extra_params => [ '-U', $role ], on_error_stop => 0);
		is($out, "$role public, pg_temp", "$call leaves role and search_path");
		unlike($err, qr/within security-restricted operation/, '... and no restriction');
		my ($error) = $err =~ /ERROR: +(.*)/;
		is($error // '', $call =~ /"none"/ ? 'invalid input syntax for type integer: "none"' : '', '... and has done what it is for');
	}
}
$node->stop('fast');
done_testing();
