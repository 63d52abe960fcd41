-- The message store. On heap there is nothing to show: see messages_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA "Chat app";
SELECT kalam.install_messages('Chat app');
SELECT kalam.install_messages('Chat app');
SELECT kalam.install_messages('missing');
SELECT kalam.install_messages('');
SELECT kalam.install_messages(NULL);
SELECT a.amname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE c.oid = '"Chat app".messages'::regclass;
SELECT attname, format_type(atttypid, atttypmod), attnotnull, col_description(attrelid, attnum) FROM pg_attribute WHERE attrelid = '"Chat app".messages'::regclass AND attnum > 0 ORDER BY attnum;
SET search_path = "Chat app", public;

-- Posting.
SELECT msg_id > 0 AS has_id, status FROM post_message('c1', 'ann', 'hello');
SELECT msg_id > 0 AS has_id, status FROM post_message(conversation_id => 'c1', "from" => 'bob', content => 'hi', metadata => '{"mood": "good"}');
\set VERBOSITY terse
SELECT post_message('', 'ann', 'x');
SELECT post_message('c1', '', 'x');
SELECT post_message('c1', 'ann', '');
SELECT post_message(NULL, 'ann', 'x');
SELECT post_message('c1', 'ann', repeat('x', 1048577));
\set VERBOSITY default
SELECT status FROM post_message('big', 'ann', repeat('é', 524288));
SELECT count, has_more, octet_length(messages->0->>'content') FROM query_messages('big');

-- Reading.
SELECT count, has_more, (SELECT jsonb_agg(m - 'msg_id' - 'timestamp') FROM jsonb_array_elements(messages) m) AS messages FROM query_messages('c1');
SELECT count, has_more, messages->0->>'from' AS first FROM query_messages('c1', "order" => 'desc');
SELECT count, has_more FROM query_messages('c1', "limit" => 1);
SELECT count, has_more FROM query_messages('c1', "limit" => 2);
SELECT * FROM query_messages('none');
SELECT messages->0->>'timestamp' LIKE '%+00:00' AS utc FROM query_messages('c1');
INSERT INTO messages (conversation_id, "from", content) SELECT 'long', 'n' || i, 'text ' || i FROM generate_series(1, 1001) i;
SELECT count, has_more FROM query_messages('long');
SELECT count, has_more FROM query_messages('long', "limit" => 1000);
SELECT count, has_more FROM query_messages('long', "limit" => 1000, "order" => 'DESC');
SELECT count, has_more, messages->0->>'from' AS first, messages->-1->>'from' AS last
FROM query_messages('long', (SELECT msg_id FROM messages WHERE "from" = 'n1'), 1000);
SELECT count, has_more, messages->0->>'from' AS first
FROM query_messages('long', (SELECT msg_id FROM messages WHERE "from" = 'n996'), 10, 'desc');
SELECT count, has_more FROM query_messages(since_msg_id => (SELECT msg_id FROM messages WHERE "from" = 'n999'));
SELECT count, has_more FROM query_messages("limit" => NULL, "order" => NULL);
\set VERBOSITY sqlstate
SELECT query_messages('long', "limit" => 0);
SELECT query_messages('long', "limit" => 1001);
SELECT query_messages('long', "limit" => -1);
SELECT query_messages('long', "order" => 'sideways');
\set VERBOSITY default

-- A schema whose name has what ends texts, and what formats fill in.
CREATE SCHEMA "a$query_$; %1$s $statement$ %s ""b"" '";
SELECT kalam.install_messages('a$query_$; %1$s $statement$ %s "b" ''');
SELECT status FROM "a$query_$; %1$s $statement$ %s ""b"" '".post_message('c1', 'ann', 'hello');
SELECT count, has_more, messages->0->>'content' AS content FROM "a$query_$; %1$s $statement$ %s ""b"" '".query_messages('c1');
SET client_min_messages = warning;
DROP SCHEMA "a$query_$; %1$s $statement$ %s ""b"" '" CASCADE;
RESET client_min_messages;

-- Nothing in an argument is taken for SQL.
SELECT count FROM query_messages($$x' OR 'a' = 'a$$);

-- Nobody may who was not granted it.
CREATE ROLE regress_kalam_nobody;
GRANT USAGE ON SCHEMA "Chat app" TO regress_kalam_nobody;
SET ROLE regress_kalam_nobody;
SELECT query_messages('c1');
SELECT post_message('c1', 'x', 'y');
RESET ROLE;
DROP OWNED BY regress_kalam_nobody;
DROP ROLE regress_kalam_nobody;
SELECT check_indexes('messages');
SET search_path = public;
DROP SCHEMA "Chat app" CASCADE;
