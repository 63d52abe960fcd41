-- User tables: one table, and every user sees, changes and collides with only their own rows.
CREATE SCHEMA user_tables;
SET search_path = user_tables, public;
CREATE ROLE regress_user_ann;
CREATE ROLE regress_user_ben;
GRANT USAGE ON SCHEMA user_tables TO regress_user_ann, regress_user_ben;

-- The column and the keys.
CREATE TABLE message (id bigint PRIMARY KEY, room int, body text UNIQUE, at timestamptz DEFAULT '2026-01-01', UNIQUE (room, id)) USING kalam_user;
GRANT SELECT, INSERT, UPDATE, DELETE ON message TO regress_user_ann, regress_user_ben;
CREATE INDEX ON message (at);
CREATE INDEX message_room ON message USING hash (room);
\d message
SELECT a.attname, a.attnotnull, c.collname FROM pg_attribute a JOIN pg_collation c ON c.oid = a.attcollation
WHERE a.attrelid = 'message'::regclass AND a.attname = '_user_id';

-- Two users with the same keys.
SET ROLE regress_user_ann;
INSERT INTO message (id, room, body) VALUES (1, 1, 'one'), (2, 1, 'two'), (3, 2, 'three');
SELECT id, room, body, _user_id FROM message ORDER BY id;
SET ROLE regress_user_ben;
SELECT count(*) FROM message;
INSERT INTO message (id, room, body) SELECT i, 1, 'number ' || i FROM generate_series(1, 5) i;
SELECT id, room, body, _user_id FROM message ORDER BY id;
UPDATE message SET room = 9 WHERE id = 1 RETURNING id, room, _user_id;
DELETE FROM message WHERE id > 3 RETURNING id, _user_id;
SET ROLE regress_user_ann;
SELECT id, room, body, _user_id FROM message ORDER BY id;

-- Keys are unique for each user.
INSERT INTO message (id, body) VALUES (1, 'again');
INSERT INTO message (id, body) VALUES (4, 'two');
INSERT INTO message (id, body) VALUES (1, 'upserted') ON CONFLICT (id) DO UPDATE SET body = excluded.body RETURNING id, body;
INSERT INTO message (id, body) VALUES (7, 'three') ON CONFLICT (body) DO NOTHING RETURNING id;
INSERT INTO message (id, body) VALUES (1, 'named') ON CONFLICT ON CONSTRAINT message_pkey DO UPDATE SET body = excluded.body RETURNING id, body;
INSERT INTO message (id, body) VALUES (1, 'whole') ON CONFLICT (_user_id, id) DO UPDATE SET body = excluded.body RETURNING id, body;
INSERT INTO message (id, body) VALUES (2, 'any') ON CONFLICT DO NOTHING RETURNING id;
MERGE INTO message m USING (VALUES (1, 'merged'), (8, 'new')) s(id, body) ON m.id = s.id
WHEN MATCHED THEN UPDATE SET body = s.body WHEN NOT MATCHED THEN INSERT (id, body) VALUES (s.id, s.body);
SELECT id, body, _user_id FROM message ORDER BY id;

-- Rows do not change hands.
INSERT INTO message (id, body, _user_id) VALUES (9, 'for ben', 'regress_user_ben');
UPDATE message SET _user_id = 'regress_user_ben' WHERE id = 1;
INSERT INTO message (id, body, _user_id) VALUES (9, 'for nobody', NULL);
\set VERBOSITY sqlstate
INSERT INTO message (id, body, _user_id) VALUES (9, 'for ben', 'regress_user_ben');
\set VERBOSITY default
INSERT INTO message (id, body, _user_id) VALUES (9, 'for myself', 'regress_user_ann') RETURNING _user_id;

-- Plans use the keys, and scans do not compute what they know.
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT body FROM message WHERE id = 1;
EXPLAIN (COSTS OFF) SELECT body FROM message ORDER BY id DESC LIMIT 2;
EXPLAIN (COSTS OFF) SELECT a.body FROM message a LEFT JOIN message b ON b.id = a.room WHERE a.id = 3;
SELECT id FROM message ORDER BY id DESC LIMIT 2;
SELECT a.id, b.id FROM message a LEFT JOIN message b ON b.id = a.room ORDER BY 1;
RESET enable_seqscan;
EXPLAIN (COSTS OFF) SELECT body FROM message WHERE room = 1 AND body LIKE 'x%';

-- The setting names users who have no role.
RESET ROLE;
SET kalam.user_id = 'nobody in the catalog';
SELECT count(*) FROM message;
INSERT INTO message (id, body) VALUES (1, 'theirs') RETURNING id, _user_id;
BEGIN;
SET LOCAL kalam.user_id = 'regress_user_ben';
SELECT id, body FROM message ORDER BY id;
COMMIT;
SELECT id, body FROM message ORDER BY id;

-- A prepared statement is one plan for all.
SET plan_cache_mode = force_generic_plan;
PREPARE mine (bigint) AS SELECT id, body, _user_id FROM message WHERE id = $1;
EXECUTE mine (1);
SET kalam.user_id = 'regress_user_ann';
EXECUTE mine (1);
SET kalam.user_id = 'regress_user_ben';
EXECUTE mine (1);
RESET plan_cache_mode;

-- A cursor goes on as the user who opened it, before its first row too.
BEGIN;
SET LOCAL kalam.user_id = 'regress_user_ann';
DECLARE early CURSOR FOR SELECT id, _user_id FROM message ORDER BY id;
DECLARE plain SCROLL CURSOR FOR SELECT id, _user_id FROM message;
FETCH 1 FROM plain;
SET LOCAL kalam.user_id = 'regress_user_ben';
FETCH 2 FROM early;
SAVEPOINT s;
SELECT 1 / 0;
ROLLBACK TO s;
FETCH 1 FROM early;
FETCH 1 FROM plain;
SELECT count(*) FROM message;
DELETE FROM message WHERE CURRENT OF plain;
ROLLBACK;

-- COPY: whole rows name the user, or leave the column out.
SET kalam.user_id = 'regress_user_ben';
COPY message (id, room, body, _user_id) TO stdout;
COPY message (id, body) FROM stdin;
100	copied
101	copied too
\.
COPY message (id, body, _user_id) FROM stdin;
102	not mine	regress_user_ann
\.
SELECT id, body, _user_id FROM message WHERE id >= 100 ORDER BY id;

-- Everybody's rows, for those who may.
SET row_security = off;
SELECT _user_id, count(*) FROM message GROUP BY 1 ORDER BY 1;
INSERT INTO message (id, body, _user_id) VALUES (500, 'routed', 'regress_user_ann') RETURNING _user_id;
UPDATE message SET body = body || '!' WHERE id = 500 RETURNING body, _user_id;
UPDATE message SET _user_id = 'regress_user_ben' WHERE id = 500;
INSERT INTO message (id, body, _user_id) VALUES (501, 'bad', ' spaced');
EXECUTE mine (1);
SET row_security = on;
EXECUTE mine (1);
SET ROLE regress_user_ann;
SET row_security = off;
\set VERBOSITY sqlstate
SELECT count(*) FROM message;
INSERT INTO message (id, body) VALUES (700, 'x');
COPY message TO stdout;
\set VERBOSITY default
SET row_security = on;
RESET ROLE;

-- The table as a whole: vacuum, rewrites, new columns and types, indexes, statistics.
CREATE FUNCTION everything() RETURNS TABLE (owner text, rows bigint, content text) SET row_security = off
BEGIN ATOMIC
    SELECT _user_id, count(*), md5(string_agg(message::text, ',' ORDER BY id)) FROM message GROUP BY 1;
END;
CREATE TABLE before_all USING heap AS SELECT * FROM everything();
DELETE FROM message WHERE id = 101;
CALL wait_for_old_snapshots();
VACUUM message;
VACUUM FULL message;
CLUSTER message USING message_pkey;
REINDEX TABLE message;
ANALYZE message;
CREATE UNIQUE INDEX CONCURRENTLY message_at_id ON message (at, id);
SELECT pg_get_indexdef('message_at_id'::regclass);
SELECT owner, e.rows - b.rows AS more, e.content = b.content AS same FROM everything() e JOIN before_all b USING (owner) ORDER BY 1;
ALTER TABLE message ADD COLUMN tag text DEFAULT 'none', ADD COLUMN stamp uuid DEFAULT gen_random_uuid(), ALTER COLUMN room TYPE bigint;
ALTER TABLE message ADD CONSTRAINT positive CHECK (id > 0), ALTER COLUMN body SET NOT NULL;
SELECT owner, e.rows - b.rows AS more FROM everything() e JOIN before_all b USING (owner) ORDER BY 1;
SELECT count(DISTINCT stamp) FROM message;
SET allow_in_place_tablespaces = on;
CREATE TABLESPACE regress_user_space LOCATION '';
ALTER TABLE message SET TABLESPACE regress_user_space;
SELECT owner, e.rows - b.rows AS more FROM everything() e JOIN before_all b USING (owner) ORDER BY 1;
INSERT INTO message (id, body) VALUES (9000, 'after the move') RETURNING _user_id;

-- Many users and large values.
CREATE TABLE note (id int PRIMARY KEY, body text) USING kalam_user;
SET row_security = off;
INSERT INTO note SELECT n, repeat(md5(u::text), 400 * (n % 3)), 'user ' || u FROM generate_series(1, 3000) u, generate_series(1, 3) n;
SELECT count(*), count(DISTINCT _user_id) FROM note;
SET row_security = on;
SET kalam.user_id = 'user 2718';
SELECT id, length(body), left(body, 32) = md5('2718') OR body = '' AS own FROM note ORDER BY id;
DELETE FROM note;
SELECT count(*) FROM note;
SET kalam.user_id = 'user 2719';
SELECT count(*) FROM note;
CALL wait_for_old_snapshots();
VACUUM note;
SELECT id, length(body) FROM note ORDER BY id;

-- Temporary and unlogged ones.
CREATE TEMP TABLE mine_for_now (id int PRIMARY KEY) USING kalam_user;
INSERT INTO mine_for_now VALUES (1) RETURNING *;
SET kalam.user_id = 'user 1';
INSERT INTO mine_for_now VALUES (1) RETURNING *;
SELECT * FROM mine_for_now;
CREATE UNLOGGED TABLE fast (id int PRIMARY KEY) USING kalam_user;
INSERT INTO fast VALUES (1);
SELECT * FROM fast;

-- TRUNCATE is for all, as its privilege is, and rolls back.
BEGIN;
TRUNCATE note;
SELECT count(*) FROM note;
ROLLBACK;
SELECT count(*) FROM note;

RESET kalam.user_id;
SET client_min_messages = warning;
DROP SCHEMA user_tables CASCADE;
DROP TABLESPACE regress_user_space;
DROP ROLE regress_user_ann;
DROP ROLE regress_user_ben;
