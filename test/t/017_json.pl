# JSON in one field becomes the jsonb that PostgreSQL makes of it, or a dead letter with PostgreSQL's own reason. Objects
# have a parser of their own, so each text is compared with what a cast says of it.
# TAP, because it needs a Redis and background workers.

use strict;
use warnings;
use Encode qw(encode_utf8);
use Postpipe::Test;

my $seed = $ENV{SEED} // 17;
srand($seed);
my $redis = Postpipe::Test::Redis->new;
my $node = pp_node('json', redis => $redis, conf => 'postpipe.max_retries = 0');
sql('CREATE EXTENSION postpipe');
sql(q(SELECT postpipe_drop_pipeline('posts')));
sql(<<'SQL');
CREATE TABLE events (n int, event jsonb);
CREATE TABLE texts (n int, raw bytea);
SELECT postpipe_create_pipeline('json', 'stream:json', options => '{"error_threshold": 1}', statement => $$INSERT INTO events SELECT (envelope ->> 'n')::int, event FROM postpipe_batch$$);
CREATE FUNCTION cast_it(raw bytea, OUT event jsonb, OUT message text) LANGUAGE plpgsql AS $$
BEGIN event := convert_from(raw, 'UTF8')::jsonb; EXCEPTION WHEN data_exception THEN message := sqlerrm; END $$;
SQL

# What is valid, what nearly is, and what lies at an edge.
my @texts = (
	'{}', ' { } ', "\t{\r\n}\n", '{"a":1}', '{"a" : "b" , "c" : null}', '{"a":true,"b":false,"c":null}', '{"":""}', '{"a":1,"a":2,"b":3,"a":4}', '{"b":1,"a":2,"cc":3,"c":4}',
	'{"n":0}', '{"n":-0}', '{"n":-0.0}', '{"n":1.50}', '{"n":1e3}', '{"n":1E-3}', '{"n":1.5e+10}', '{"n":123456789012345678}', '{"n":-123456789012345678}', '{"n":12345678901234567890123}', '{"n":9223372036854775807}',
	'{"n":-9223372036854775808}', '{"n":0.1}', '{"n":1e400}', '{"n":10000}', '{"n":99999999}',
	'{"n":01}', '{"n":-}', '{"n":1.}', '{"n":.5}', '{"n":1e}', '{"n":1e+}', '{"n":+1}', '{"n":0x1}', '{"n":1a}', '{"n":NaN}', '{"n":1e999999}', '{"n":--1}', '{"n":1 2}',
	'{"s":"\u0041\u00e9\u0416\u20ac"}', '{"s":"\ud83d\ude80"}', '{"s":"\"\\\/\b\f\n\r\t"}', '{"\u0061":1,"a":2}', '{"s":"x\ny","t":"\u000a"}', '{"s":"' . ('\u0416' x 500) . '"}', '{"s":"' . ('abc\n' x 500) . '"}',
	'{"s":"\u0000"}', '{"s":"\ud83d"}', '{"s":"\ude80"}', '{"s":"\ud83dx"}', '{"s":"\ud83d\u0041"}', '{"s":"\u12"}', '{"s":"\u12g4"}', '{"s":"\x"}', '{"s":"\\', '{"s":"\u', '{"s":"abc', '{"s":"a' . "\n" . 'b"}', '{"s":"a' . "\x01" . '"}', '{"s":"' . "\x7f" . '"}',
	'{"a":[1,2,{"b":null}],"c":{"d":{}}}', '{"a":[]}', '{"a":{}}', '{"a":["x]","\"]}",{"b":"}"}],"z":1}', '{"a":["x"],"bb":{"c":[1,2.5,null]},"n":7,"s":"t"}', '{"a":["x",],"b":1}', '{"a":{"b"},"b":1}', '{"a":[1}]}', '{"a":[1','{"a":["', '{"a":["\\', '{"a":[]]}', '{"a":["\u0000"]}', '{"a":[}', '[]', '[1]', '1', '"a"', 'null', 'true', '', ' ', '{', '}', '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', '{,}', '{"a":1}}', '{"a":1} x', '{"a":1}{"b":2}', '{a:1}', "{'a':1}",
	'{"a":tru}', '{"a":truex}', '{"a":True}', '{"a":nul}', '{"a" 1}', '{"a":1 "b":2}', '{"a":1;"b":2}', '{1:2}', '{null:1}', '{"a"::1}', '{"a":,"b":1}',
	'{"' . ('k' x 300) . '":"' . ('v' x 70000) . '"}', '{' . join(',', map { qq("k$_":$_) } 1 .. 300) . '}', '{' . join(',', map { qq("k$_":"$_") } 1 .. 256) . '}',
	encode_utf8("{\"\x{43a}\x{43b}\x{44e}\x{447}\":\"\x{440}\x{435}\x{43b}\x{438}\x{437} \x{1f680}\",\"x\":\"\x{e9}\"}"), encode_utf8("\x{feff}{}"), "{\"s\":\"\x{c3}\"}", "{\"s\":\"\x{ff}\x{fe}\"}",
	map { '{"p":"' . ('x' x $_) . '\"' . ('y' x (17 - $_)) . '","q":' . ('1' x ($_ + 1)) . '}' } 0 .. 17);
# Changes of a byte or a few in what is valid.
my @alphabet = (split(//, "{}[]\",:\\ntrue0123456789.eE+-u \t/"), "\x00", "\x1f", "\xd0", "\x96");
my @valid = ('{"id": 12, "text": "a\"b\u0416c\n", "ok": true, "no": null, "f": -1.25e2}', encode_utf8("{\"a\":\"\x{436}\x{436}\",\"b\":\"\\\\\",\"c\":false}"), '{"x":"0123456789abcdef","y":[1,{"z":"q"}]}');
for (1 .. 3000)
{
	my $text = $valid[ rand @valid ];
	substr($text, rand(length($text) + 1), rand(3)) = join '', map { $alphabet[ rand @alphabet ] } 1 .. rand(3) for 0 .. rand(2);
	push @texts, $text;
}

my $n = 0;
my @commands = map { [ 'XADD', 'stream:json', '*', 'n', $n++, 'data', $_ ] } @texts;
$redis->pipeline(splice(@commands, 0, 500)) while @commands;
for (my $i = 0; $i < @texts; $i += 500)
{
	my $last = $i + 499 < $#texts ? $i + 499 : $#texts;
	sql('INSERT INTO texts VALUES ' . join ', ', map { "($_, '\\x" . unpack('H*', $texts[$_]) . "')" } $i .. $last);
}
wait_sql($node, 'postgres', q(SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM postpipe_dlq)), scalar @texts, "all are settled (SEED=$seed)");

# What a cast makes of it, and the event: the same, by its text, by its parts, and in an index's order.
sql(q(CREATE TABLE compared AS SELECT n, raw, c.event AS wanted, c.message, e.event FROM texts t CROSS JOIN cast_it(raw) c LEFT JOIN events e USING (n)));
is(sql(q(SELECT count(*) FROM compared WHERE jsonb_typeof(wanted) = 'object' AND event IS NULL)), 0, 'every object is applied');
is(sql(q(SELECT count(*) FROM compared WHERE event IS NOT NULL AND wanted IS NULL)), 0, '... and nothing else');
my $different = q(SELECT string_agg(encode(raw, 'escape') || ' -> ' || event, '; ') FROM compared WHERE event IS NOT NULL AND );
is(sql("$different event::text <> wanted::text"), '', 'each event has the text of its cast');
is(sql("$different (event <> wanted OR jsonb_cmp(event, wanted) <> 0 OR jsonb_hash(event) <> jsonb_hash(wanted) OR NOT event @> wanted OR NOT wanted @> event)"), '', '... and is equal to it');
is(sql("$different EXISTS (SELECT FROM jsonb_each(wanted) w WHERE event -> key IS DISTINCT FROM value OR event ->> key IS DISTINCT FROM wanted ->> key)"), '', '... in each part');
is(sql(q(SELECT string_agg(format('%s: %s, not %s', encode(raw, 'escape'), d.message, c.message), '; ') FROM compared c JOIN postpipe_dlq d ON convert_from(d.fields[2], 'UTF8')::int = c.n
	WHERE (c.message LIKE '%json%' OR c.message LIKE '%Unicode%' OR c.message LIKE '%numeric%') AND d.message IS DISTINCT FROM c.message)), '', 'what is dead has the reason of the cast');
is(sql(q(SELECT count(*) > 500 FROM compared WHERE event IS NOT NULL)), 't', 'many were applied');
is(sql(q(SELECT count(*) > 500 FROM compared WHERE event IS NULL)), 't', '... and many were not');
pp_balanced($node);
$node->stop;
done_testing();

sub sql { my ($query) = @_; return $node->safe_psql('postgres', $query) }
