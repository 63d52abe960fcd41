-- Tables become user tables, and the other way round. On heap there are no user tables: see user_access_method_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE ROLE regress_method_owner;
CREATE ROLE regress_method_other;
CREATE SCHEMA user_method;
GRANT ALL ON SCHEMA user_method TO regress_method_owner, regress_method_other;
GRANT SET ON PARAMETER kalam.user_id TO regress_method_owner, regress_method_other;
SET search_path = user_method, public;
SET SESSION AUTHORIZATION regress_method_owner;

-- A table with the rows of many users, as one has it before.
CREATE TABLE message (id bigint, room int, body text, _user_id text, PRIMARY KEY (_user_id, id)) USING heap;
INSERT INTO message SELECT i, i % 3, CASE WHEN i % 10 = 0 THEN noise(i, 9000) ELSE 'body ' || i END, 'user ' || u
FROM generate_series(1, 3) u, generate_series(1, 200) i;
CREATE INDEX by_room ON message (room);
CREATE INDEX by_body ON message USING hash (body);
ANALYZE message;
SELECT count(*) > 0 AS has_values FROM pg_stats WHERE schemaname = 'user_method' AND tablename = 'message' AND most_common_vals IS NOT NULL;
ALTER TABLE message SET ACCESS METHOD kalam_user;
SELECT amname FROM pg_class JOIN pg_am ON pg_am.oid = relam WHERE pg_class.oid = 'message'::regclass;
SELECT attnotnull, pg_get_expr(adbin, adrelid) FROM pg_attribute JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = 'message'::regclass;
SELECT count(*) FROM pg_stats WHERE schemaname = 'user_method' AND tablename = 'message';
SET kalam.user_id = 'user 2';
SELECT count(*), count(DISTINCT _user_id), bool_and(body = CASE WHEN id % 10 = 0 THEN noise(id::int, 9000) ELSE 'body ' || id END) AS same FROM message;
SELECT count(*) FROM message WHERE room = 1;
SELECT id, _user_id FROM message WHERE body = 'body 77';
INSERT INTO message (id, body) VALUES (1000, 'new') RETURNING _user_id;
INSERT INTO message (id, body) VALUES (1000, 'again') ON CONFLICT (id) DO UPDATE SET body = excluded.body RETURNING *;
SET kalam.user_id = 'user 4';
SELECT count(*) FROM message;

-- Nobody but who may see everybody's rows can open it again.
ALTER TABLE message SET ACCESS METHOD heap;
SET row_security = off;
ALTER TABLE message SET ACCESS METHOD heap;
RESET SESSION AUTHORIZATION;
SET row_security = on;
ALTER TABLE message SET ACCESS METHOD kalam_shared;
SET row_security = off;
BEGIN;
ALTER TABLE message SET ACCESS METHOD heap;
SELECT _user_id, count(*) FROM message GROUP BY 1 ORDER BY 1;
ROLLBACK;
BEGIN;
ALTER TABLE message SET ACCESS METHOD kalam_shared;
SELECT _user_id, count(*) FROM message GROUP BY 1 ORDER BY 1;
ALTER TABLE message SET ACCESS METHOD kalam_user;
COMMIT;
SELECT _user_id, count(*) FROM message GROUP BY 1 ORDER BY 1;
RESET row_security;
SET kalam.user_id = 'user 1';
SELECT count(*) FROM message;
SELECT check_indexes('message');

-- With the column added by the same statement, all rows are the session's user's.
CREATE TABLE note (id int PRIMARY KEY, body text) USING kalam_shared;
INSERT INTO note VALUES (1, 'one'), (2, 'two');
SET kalam.user_id = 'ann';
ALTER TABLE note DROP CONSTRAINT note_pkey, ADD COLUMN _user_id text COLLATE "C", ADD PRIMARY KEY (_user_id, id), SET ACCESS METHOD kalam_user;
\d note
SELECT * FROM note;
SET kalam.user_id = 'bob';
SELECT * FROM note;
INSERT INTO note VALUES (1, 'of bob');

-- Deleted rows that nobody owns are forgotten.
CREATE TABLE kept (id int, _user_id text) USING kalam_shared;
INSERT INTO kept VALUES (1, 'ann'), (2, 'bob'), (3, 'bob');
DELETE FROM kept WHERE id = 2;
SELECT count(*) FROM kalam.history('kept');
BEGIN;
DELETE FROM kept WHERE id = 3;
ALTER TABLE kept SET ACCESS METHOD kalam_user;
ROLLBACK;
ALTER TABLE kept SET ACCESS METHOD kalam_user;
SET row_security = off;
SELECT count(*) FROM kalam.history('kept');
RESET row_security;
SELECT * FROM kept;

-- Cold rows come along.
CREATE TABLE archive (id int, body text, _user_id text) USING kalam_shared WITH (kalam.flush_policy = 'off');
INSERT INTO archive SELECT i, noise(i, 100), 'user ' || i % 2 FROM generate_series(1, 2000) i;
SELECT kalam.flush('archive', wait => true) IS NOT NULL AS flushed;
ALTER TABLE archive SET ACCESS METHOD kalam_user;
SET kalam.user_id = 'user 1';
SELECT count(*), bool_and(body = noise(id, 100)) AS same FROM archive;
SELECT kalam.flush('archive', wait => true) IS NOT NULL AS flushed;
SELECT count(*), bool_and(body = noise(id, 100)) AS same FROM archive;
SET row_security = off;
ALTER TABLE archive SET ACCESS METHOD heap;
SELECT count(*), bool_and(body = noise(id, 100)) AS same FROM archive;
RESET row_security;

-- Refused.
\set VERBOSITY terse
CREATE TABLE plain (id int PRIMARY KEY) USING kalam_shared;
ALTER TABLE plain SET ACCESS METHOD kalam_user;
ALTER TABLE plain ADD COLUMN _user_id int;
ALTER TABLE plain SET ACCESS METHOD kalam_user;
ALTER TABLE plain DROP COLUMN _user_id, ADD COLUMN _user_id text DEFAULT 'ann';
ALTER TABLE plain SET ACCESS METHOD kalam_user;
ALTER TABLE plain DROP CONSTRAINT plain_pkey;
CREATE UNIQUE INDEX mixed ON plain (id);
ALTER TABLE plain SET ACCESS METHOD kalam_user;
DROP INDEX mixed;
INSERT INTO plain VALUES (1, NULL);
ALTER TABLE plain SET ACCESS METHOD kalam_user;
UPDATE plain SET _user_id = E'a\tb';
ALTER TABLE plain SET ACCESS METHOD kalam_user;
UPDATE plain SET _user_id = 'ann';
CREATE STATISTICS both_columns ON id, _user_id FROM plain;
ALTER TABLE plain SET ACCESS METHOD kalam_user;
DROP STATISTICS both_columns;
ALTER TABLE plain SET ACCESS METHOD kalam_stream;
ALTER TABLE plain ADD PRIMARY KEY (_user_id, id);
CREATE TABLE refers (id int, owner text, FOREIGN KEY (owner, id) REFERENCES plain) USING heap;
ALTER TABLE plain SET ACCESS METHOD kalam_user;
DROP TABLE refers;
CREATE TABLE below () INHERITS (plain) USING heap;
ALTER TABLE plain SET ACCESS METHOD kalam_user;
ALTER TABLE below SET ACCESS METHOD kalam_user;
DROP TABLE below;
ALTER TABLE plain SET ACCESS METHOD kalam_user;
CREATE TABLE refers (id int, FOREIGN KEY (_user_id, id) REFERENCES plain) USING kalam_user;
SET row_security = off;
ALTER TABLE refers SET ACCESS METHOD heap;
ALTER TABLE plain SET ACCESS METHOD kalam_stream;
ALTER TABLE plain SET ACCESS METHOD kalam_user;
CREATE TABLE parts (id int, _user_id text COLLATE "C") PARTITION BY LIST (id);
CREATE TABLE part PARTITION OF parts FOR VALUES IN (1) USING kalam_user;
ALTER TABLE part SET ACCESS METHOD heap;
ALTER TABLE parts DETACH PARTITION part;
ALTER TABLE part SET ACCESS METHOD heap;
CREATE TABLE event (id int) USING kalam_stream WITH (kalam.ttl = '1 day');
ALTER TABLE event SET ACCESS METHOD heap;
ALTER TABLE event SET ACCESS METHOD kalam_user;
RESET row_security;
-- Whoever does not own a table waits for nobody and learns nothing.
SET SESSION AUTHORIZATION regress_method_other;
ALTER TABLE message SET ACCESS METHOD kalam_shared;
ALTER TABLE plain SET ACCESS METHOD kalam_user;
RESET SESSION AUTHORIZATION;

\set VERBOSITY default
RESET kalam.user_id;
SET client_min_messages = warning;
DROP SCHEMA user_method CASCADE;
REVOKE SET ON PARAMETER kalam.user_id FROM regress_method_owner, regress_method_other;
DROP ROLE regress_method_owner, regress_method_other;
