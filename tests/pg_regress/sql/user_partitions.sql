-- Partitioned user tables, inheritance between user tables, and user tables made from a query.
CREATE SCHEMA user_partitions;
SET search_path = user_partitions, public;
CREATE ROLE regress_partitions_bob;
GRANT USAGE, CREATE ON SCHEMA user_partitions TO regress_partitions_bob;
SET default_table_access_method = heap;

-- The partitioned table names the column and the keys; its partitions are user tables.
CREATE TABLE message (id int, sent date, room int, body text, _user_id text COLLATE "C" NOT NULL DEFAULT kalam.user_id(), PRIMARY KEY (_user_id, id, sent))
    PARTITION BY RANGE (sent);
CREATE TABLE message_1 PARTITION OF message FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') USING kalam_user;
CREATE TABLE message_2 PARTITION OF message FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY HASH (_user_id);
CREATE TABLE message_2_0 PARTITION OF message_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0) USING kalam_user;
CREATE TABLE message_2_1 PARTITION OF message_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1) USING kalam_user;
CREATE TABLE message_rest (id int, sent date, room int, body text, PRIMARY KEY (id, sent)) USING kalam_user;
ALTER TABLE message ATTACH PARTITION message_rest DEFAULT;
CREATE INDEX message_room ON message (room);
ALTER TABLE message ADD UNIQUE (room, id, sent);
DO $$ DECLARE t text; BEGIN FOREACH t IN ARRAY '{message_1,message_2_0,message_2_1,message_rest}'::text[] LOOP
    EXECUTE format('ALTER TABLE %I SET (kalam.flush_policy = ''off'')', t); END LOOP; END $$;
SELECT indrelid::regclass AS relation, array_agg(pg_get_indexdef(indexrelid) ~ '\(_user_id, ') AS first FROM pg_index WHERE indrelid::regclass::text LIKE 'message%' GROUP BY indrelid ORDER BY indrelid::regclass::text;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON message, message_1, message_2_0 TO regress_partitions_bob;

-- Two users with the same keys.
SET kalam.user_id = 'ann';
INSERT INTO message (id, sent, room, body) SELECT i, date '2023-12-01' + i, i % 7, 'of ann' FROM generate_series(1, 900) i;
SET kalam.user_id = 'regress_partitions_bob';
INSERT INTO message (id, sent, room, body) SELECT i, date '2023-12-01' + i, i % 7, 'of bob' FROM generate_series(1, 300) i;
COPY message (id, sent, body) FROM stdin;
9001	2025-03-01	copied
9002	2024-03-01	copied
\.
RESET kalam.user_id;
ANALYZE message;
CREATE FUNCTION look() RETURNS TABLE (rows bigint, users text, lowest int, highest int) LANGUAGE sql AS
    $$ SELECT count(*), string_agg(DISTINCT _user_id, ' '), min(id), max(id) FROM message $$;
SET kalam.user_id = 'ann';
SELECT * FROM look();
SELECT count(*) FROM message WHERE room = 3;
SELECT tableoid::regclass, count(*) FROM message GROUP BY tableoid ORDER BY tableoid::regclass::text;
SET kalam.user_id = 'regress_partitions_bob';
SET ROLE regress_partitions_bob;
SELECT * FROM look();
SELECT count(*) FROM message WHERE room = 3;
SELECT count(*) FROM message_1;
SELECT count(*) FROM message WHERE _user_id = 'ann';
RESET ROLE;
SET kalam.user_id = 'carol';
SELECT * FROM look();
RESET kalam.user_id;

-- The planner looks at the user's partitions only, whoever runs the plan.
EXPLAIN (COSTS OFF) SELECT * FROM message WHERE sent = '2024-05-05' AND id = 5;
SET plan_cache_mode = force_generic_plan;
PREPARE count_late AS SELECT count(*), min(body) FROM message WHERE sent >= '2025-01-01';
SET kalam.user_id = 'ann';
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT count(*) FROM message_2;
EXECUTE count_late;
SET kalam.user_id = 'regress_partitions_bob';
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT count(*) FROM message_2;
EXECUTE count_late;
SET row_security = off;
EXECUTE count_late;
SELECT * FROM look();
SET row_security = on;
EXECUTE count_late;
RESET plan_cache_mode;
-- A plan that hides its tables is not run for somebody else.
CREATE TABLE seen (rows bigint) USING heap;
CREATE RULE count_late AS ON DELETE TO seen DO ALSO INSERT INTO seen SELECT count(*) FROM message_2;
SET plan_cache_mode = force_generic_plan;
PREPARE hidden AS DELETE FROM seen;
EXECUTE hidden;
TABLE seen;
SET row_security = off;
EXECUTE hidden;
SET row_security = on;
RESET plan_cache_mode;

-- Writing: keys are unique for each user, rows stay whose they are.
SET kalam.user_id = 'regress_partitions_bob';
INSERT INTO message (id, sent) VALUES (5, '2023-12-06');
INSERT INTO message (id, sent, body) VALUES (700, '2025-10-31', 'new of bob'), (5, '2023-12-06', 'changed') ON CONFLICT (id, sent) DO UPDATE SET body = excluded.body RETURNING id, body;
INSERT INTO message (id, sent, _user_id) VALUES (1, '2024-01-01', 'ann');
UPDATE message SET _user_id = 'ann' WHERE id = 5;
UPDATE message SET _user_id = 'ann' WHERE id = 700;
UPDATE message SET sent = '2025-06-01' WHERE id = 5 RETURNING tableoid::regclass::text LIKE 'message_2%' AS moved;
DELETE FROM message WHERE body = 'of ann';
DELETE FROM message WHERE id = 5 RETURNING body;
MERGE INTO message m USING (VALUES (6, date '2023-12-07'), (7000, date '2024-02-02')) s (id, sent) ON m.id = s.id AND m.sent = s.sent
    WHEN MATCHED THEN UPDATE SET body = 'merged' WHEN NOT MATCHED THEN INSERT (id, sent, body) VALUES (s.id, s.sent, 'merged');
SELECT id, body FROM message WHERE body = 'merged' ORDER BY id;
SELECT id FROM message WHERE id = 8 FOR UPDATE;
SET kalam.user_id = 'ann';
SELECT count(*), count(*) FILTER (WHERE body = 'of ann') FROM message;

-- References.
CREATE TABLE room (id int PRIMARY KEY) USING kalam_user;
CREATE TABLE topic (id int PRIMARY KEY) USING heap;
ALTER TABLE message ADD COLUMN topic int REFERENCES topic;
ALTER TABLE message ADD FOREIGN KEY (room) REFERENCES room;
ALTER TABLE message ADD FOREIGN KEY (_user_id, room) REFERENCES room (_user_id, id) ON DELETE CASCADE;
SET row_security = off;
INSERT INTO room (id, _user_id) SELECT i, u FROM generate_series(0, 6) i, unnest('{ann,regress_partitions_bob}'::text[]) u;
SET row_security = on;
ALTER TABLE message ADD FOREIGN KEY (_user_id, room) REFERENCES room (_user_id, id) ON DELETE CASCADE;
DELETE FROM room WHERE id = 3;
SELECT count(*) FROM message WHERE room = 3;
SET kalam.user_id = 'regress_partitions_bob';
SELECT count(*) FROM message WHERE room = 3;
INSERT INTO message (id, sent, room) VALUES (8000, '2024-01-01', 77);
CREATE TABLE mark (id int PRIMARY KEY, message int, sent date, FOREIGN KEY (_user_id, message, sent) REFERENCES message ON DELETE CASCADE) USING kalam_user;
INSERT INTO mark VALUES (1, 8, '2023-12-09');
INSERT INTO mark VALUES (2, 800, '2026-02-08');
DELETE FROM message WHERE id = 8;
SELECT count(*) FROM mark;
CREATE TABLE spy (who text, id int, sent date, FOREIGN KEY (who, id, sent) REFERENCES message) USING heap;

-- Cold rows.
CALL wait_for_old_snapshots();
SELECT kalam.flush('message_1', wait => true) IS NOT NULL AND kalam.flush('message_2_0', wait => true) IS NOT NULL AS flushed;
SELECT count(*) > 0 AS cold FROM kalam.table_segments('message_1');
SELECT * FROM look();
UPDATE message SET body = 'warm' WHERE id = 50 RETURNING id;
SET kalam.user_id = 'ann';
SELECT * FROM look();
SELECT body FROM message WHERE id = 50;
SELECT rows FROM kalam.user_usage('ann') WHERE relation::regclass::text LIKE 'message%' ORDER BY relation::regclass::text;

-- Partitions come and go.
ALTER TABLE message DETACH PARTITION message_rest;
SELECT * FROM look();
SELECT count(*) FROM message_rest;
ALTER TABLE message ATTACH PARTITION message_rest DEFAULT;
CREATE TABLE message_3 PARTITION OF message FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') USING kalam_user;
DELETE FROM message WHERE sent >= '2026-01-01';
CREATE TABLE message_3 PARTITION OF message FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') USING kalam_user;
SET row_security = off;
SELECT count(*) FROM message_rest WHERE sent >= '2026-01-01';
SET row_security = on;
TRUNCATE message CASCADE;
ALTER TABLE message DETACH PARTITION message_rest;
ALTER TABLE message DETACH PARTITION message_3 CONCURRENTLY;
SELECT * FROM look();

-- All tables of a tree are user tables, or none.
CREATE TABLE plain (id int, sent date, room int, body text, _user_id text NOT NULL, topic int) USING heap;
CREATE FOREIGN DATA WRAPPER regress_partitions_wrapper;
CREATE SERVER regress_partitions_server FOREIGN DATA WRAPPER regress_partitions_wrapper;
CREATE FOREIGN TABLE far (id int, sent date, room int, body text, _user_id text NOT NULL, topic int) SERVER regress_partitions_server;
\set VERBOSITY terse
CREATE TABLE message_4 PARTITION OF message FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
CREATE TABLE message_4 PARTITION OF message_2 FOR VALUES WITH (MODULUS 4, REMAINDER 1) USING kalam_shared;
CREATE FOREIGN TABLE message_4 PARTITION OF message FOR VALUES FROM ('2027-01-01') TO ('2028-01-01') SERVER regress_partitions_server;
ALTER TABLE message ATTACH PARTITION plain FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
ALTER TABLE message ATTACH PARTITION far FOR VALUES FROM ('2027-01-01') TO ('2028-01-01');
ALTER TABLE message DROP COLUMN _user_id;
ALTER TABLE message RENAME COLUMN _user_id TO owner;
ALTER TABLE message ALTER _user_id DROP NOT NULL;
CREATE TABLE shared (id int, _user_id text) PARTITION BY LIST (id);
CREATE TABLE shared_1 PARTITION OF shared FOR VALUES IN (1) USING heap;
CREATE TABLE shared_2 PARTITION OF shared FOR VALUES IN (2) USING kalam_user;
ALTER TABLE shared ATTACH PARTITION room FOR VALUES IN (3);
SELECT count(*) FROM shared;
-- What is still empty may become either, but for its foreign keys.
CREATE TABLE open (id int, _user_id text, up int, PRIMARY KEY (_user_id, id), FOREIGN KEY (_user_id, up) REFERENCES room (_user_id, id)) PARTITION BY LIST (id);
CREATE TABLE open_bad (id int, _user_id text, up int, FOREIGN KEY (up) REFERENCES room) PARTITION BY LIST (id);
CREATE TABLE open_1 PARTITION OF open FOR VALUES IN (1) USING heap;
CREATE TABLE refers (who text, id int, FOREIGN KEY (who, id) REFERENCES open) USING heap;
CREATE TABLE open_1 PARTITION OF open FOR VALUES IN (1) USING kalam_user;
DROP TABLE refers;
CREATE TABLE open_1 PARTITION OF open FOR VALUES IN (1) USING kalam_user;
CREATE TABLE bare (id int PRIMARY KEY) PARTITION BY LIST (id);
CREATE TABLE bare_1 PARTITION OF bare FOR VALUES IN (1) USING kalam_user;
ALTER TABLE bare ADD COLUMN _user_id text;
CREATE TABLE bare_1 PARTITION OF bare FOR VALUES IN (1) USING kalam_user;
\set VERBOSITY default

-- Inheritance.
CREATE TABLE note (id int PRIMARY KEY, body text) USING kalam_user;
CREATE TABLE long_note (pages int) INHERITS (note) USING kalam_user;
CREATE TABLE loose (id int NOT NULL, body text) USING kalam_user;
ALTER TABLE loose ADD COLUMN more int;
ALTER TABLE loose INHERIT note;
SET kalam.user_id = 'ann';
INSERT INTO note VALUES (1, 'ann');
INSERT INTO long_note (id, body) VALUES (1, 'ann, long');
SET kalam.user_id = 'regress_partitions_bob';
INSERT INTO note VALUES (1, 'bob');
INSERT INTO long_note (id, body) VALUES (2, 'bob, long');
INSERT INTO loose (id, body) VALUES (3, 'bob, loose');
SELECT tableoid::regclass, id, body FROM note ORDER BY id, body;
UPDATE note SET body = body || '!' WHERE id < 3;
SELECT id, body, _user_id FROM ONLY note;
SET kalam.user_id = 'ann';
SELECT id, body, _user_id FROM note ORDER BY body;
\set VERBOSITY terse
CREATE TABLE other () INHERITS (note) USING heap;
CREATE FOREIGN TABLE other () INHERITS (note) SERVER regress_partitions_server;
CREATE TABLE kin (id int, body text, _user_id text NOT NULL) USING heap;
CREATE FOREIGN TABLE far_kin (id int, body text, _user_id text NOT NULL) SERVER regress_partitions_server;
ALTER TABLE kin INHERIT note;
ALTER FOREIGN TABLE far_kin INHERIT note;
CREATE TABLE other () INHERITS (kin) USING kalam_user;
ALTER TABLE note INHERIT kin;
\set VERBOSITY default

-- From a query: the rows are those of the session's user.
CREATE TABLE made USING kalam_user AS SELECT i AS id, 'made ' || i AS body FROM generate_series(1, 3) i;
\d made
INSERT INTO made VALUES (4, 'later');
SELECT * FROM made ORDER BY id;
SET kalam.user_id = 'regress_partitions_bob';
SELECT count(*) FROM made;
INSERT INTO made VALUES (1, 'of bob');
CREATE TABLE made_copy USING kalam_user AS SELECT * FROM made;
SELECT * FROM made_copy;
SET default_table_access_method = kalam_user;
CREATE TABLE distinct_rows (number) AS SELECT DISTINCT i % 2 AS n FROM generate_series(1, 10) i ORDER BY n;
SELECT * FROM distinct_rows ORDER BY 1;
SELECT 1 AS one INTO both_rows UNION SELECT 2;
SELECT * FROM both_rows ORDER BY 1;
CREATE TEMP TABLE grouped AS SELECT room % 2 AS odd, count(*) FROM (VALUES (1), (2), (3)) v (room) GROUP BY 1 ORDER BY max(room) LIMIT 1;
SELECT * FROM grouped;
CREATE TABLE empty AS SELECT i AS id FROM generate_series(1, 3) i WITH NO DATA;
INSERT INTO empty VALUES (7);
SELECT * FROM empty;
CREATE TABLE IF NOT EXISTS empty AS SELECT 1 AS other;
CREATE TABLE changed AS WITH gone AS (DELETE FROM empty RETURNING id) SELECT id FROM gone;
SELECT * FROM changed;
PREPARE numbers AS SELECT 1 AS one;
CREATE TABLE refused AS EXECUTE numbers;
CREATE TABLE refused AS WITH gone AS (DELETE FROM empty RETURNING id) SELECT DISTINCT id FROM gone;
CREATE TABLE refused AS SELECT 'ann' AS _user_id;
CREATE TABLE refused AS SELECT 1 AS _user_id;
CREATE TABLE refused AS SELECT NULL::text AS _user_id WHERE false;
DROP TABLE refused;
CREATE MATERIALIZED VIEW refused AS SELECT 1 AS one;
CREATE MATERIALIZED VIEW refused USING heap AS SELECT 'ann'::text AS _user_id;
ALTER MATERIALIZED VIEW refused SET ACCESS METHOD kalam_user;
BEGIN;
RESET kalam.user_id;
SET LOCAL ROLE regress_partitions_bob;
CREATE TABLE of_role AS SELECT 1 AS one;
SELECT * FROM of_role;
ROLLBACK;
CREATE FUNCTION make() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN DROP TABLE IF EXISTS by_function; CREATE TABLE by_function AS SELECT 1 AS one; RETURN (SELECT count(*) FROM by_function); END $$;
SET client_min_messages = warning;
SELECT make();
SELECT make();

RESET kalam.user_id;
DROP FOREIGN DATA WRAPPER regress_partitions_wrapper CASCADE;
DROP TABLE grouped;
DROP SCHEMA user_partitions CASCADE;
DROP ROLE regress_partitions_bob;
