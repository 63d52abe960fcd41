-- One user tries every way to learn of another's rows, or to touch them. Each attempt is a check of its own: what it shows is
-- what it would show if the other user had no rows.
CREATE SCHEMA user_hostile;
SET search_path = user_hostile, public;
CREATE ROLE regress_hostile_eve;
CREATE ROLE regress_hostile_owner;
GRANT USAGE, CREATE ON SCHEMA user_hostile TO regress_hostile_eve;
GRANT CREATE ON SCHEMA user_hostile TO regress_hostile_owner;
GRANT USAGE ON SCHEMA user_hostile TO regress_hostile_owner;
SET ROLE regress_hostile_owner;
CREATE TABLE secret (id int PRIMARY KEY, room int, word text, score float8, words text[], UNIQUE (word)) USING kalam_user;
CREATE TABLE part (id int PRIMARY KEY, secret int, FOREIGN KEY (_user_id, secret) REFERENCES secret (_user_id, id)) USING kalam_user;
CREATE TABLE shared (id int PRIMARY KEY, word text) USING kalam_shared;
CREATE INDEX ON secret (score);
CREATE INDEX secret_room_hash ON secret USING hash (room);
CREATE INDEX secret_words_gin ON secret USING gin (words);
CREATE INDEX secret_room_brin ON secret USING brin (room);
GRANT SELECT, INSERT, UPDATE, DELETE, REFERENCES ON secret, part, shared TO regress_hostile_eve;
RESET ROLE;

-- The victim's rows: many, before and behind those of the attacker.
SET kalam.user_id = 'victim';
INSERT INTO secret SELECT i, i % 5, 'word ' || i, i, ARRAY['common', 'w' || i] FROM generate_series(1, 2000) i;
INSERT INTO part SELECT i, i FROM generate_series(1, 100) i;
RESET kalam.user_id;
SET ROLE regress_hostile_eve;
INSERT INTO secret VALUES (1, 1, 'mine', 0.5, '{mine}'), (2, 2, 'also mine', 1.5, '{common}');
INSERT INTO part VALUES (1, 1);
RESET ROLE;
SET kalam.user_id = 'victim';
INSERT INTO secret SELECT i, i % 5, 'word ' || i, i, ARRAY['common'] FROM generate_series(2001, 2500) i;
RESET kalam.user_id;
ANALYZE secret;
SET ROLE regress_hostile_eve;

-- Reading, by every kind of scan.
SELECT count(*), min(id), max(id), min(score), max(score), min(word), max(word) FROM secret;
SELECT count(*) FROM secret WHERE id > 2;
SELECT EXISTS (SELECT FROM secret WHERE word = 'word 7'), EXISTS (SELECT FROM secret WHERE _user_id = 'victim');
SELECT _user_id, count(*) FROM secret GROUP BY 1;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*), max(id) FROM secret WHERE id >= 0;
SELECT count(*) FROM secret WHERE word > '';
SELECT count(*) FROM secret WHERE room = 1;
SELECT id FROM secret ORDER BY score;
SELECT id FROM secret ORDER BY _user_id DESC, id DESC;
SELECT _user_id FROM secret WHERE _user_id >= '' ORDER BY _user_id;
SET enable_indexscan = off;
SELECT count(_user_id) FROM secret WHERE _user_id > '';
SET enable_indexonlyscan = off;
SET enable_bitmapscan = on;
SELECT count(*) FROM secret WHERE room = 1;
SELECT count(*) FROM secret WHERE words @> '{common}';
SELECT count(*) FROM secret WHERE words && '{w7, w8, mine}';
SELECT count(*) FROM secret WHERE room BETWEEN 0 AND 9 AND words @> '{common}';
SET work_mem = '64kB';
SELECT count(*) FROM secret WHERE words @> '{common}' OR id > 0;
RESET work_mem;
RESET enable_indexscan;
RESET enable_indexonlyscan;
RESET enable_seqscan;
SELECT count(*) FROM secret TABLESAMPLE system (100);
SELECT count(*) FROM secret TABLESAMPLE bernoulli (100);
SELECT count(*) FROM secret TABLESAMPLE system (100) REPEATABLE (1) WHERE id > 2;
SELECT count(*) FROM ONLY secret s JOIN secret t ON t.room = s.room OR true;
SELECT count(*) FROM secret s, LATERAL (SELECT * FROM secret t WHERE t.id <> s.id) t;
SELECT (SELECT count(*) FROM secret), ARRAY(SELECT id FROM secret ORDER BY id);
WITH RECURSIVE r AS (SELECT 1 AS id UNION SELECT s.id + 1 FROM r JOIN secret s USING (id)) SELECT max(id) FROM r;
SELECT count(*) FROM shared h FULL JOIN secret s ON s.id = h.id;
SELECT row_to_json(s)->>'id' AS id FROM secret s ORDER BY 1;

-- Parallel workers have the same user.
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
SET min_parallel_index_scan_size = 0;
SET force_parallel_mode = on;
SELECT count(*), max(id) FROM secret;
SELECT count(*) FROM secret WHERE room = 1;
CREATE FUNCTION counted() RETURNS SETOF bigint LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT count(*) FROM user_hostile.secret';
SELECT * FROM counted();
SELECT counted() FROM generate_series(1, 2);
RESET force_parallel_mode;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
RESET min_parallel_index_scan_size;

-- By row address: own rows lie in one block, every other block is somebody else's.
SELECT count(*) FROM secret WHERE ctid = '(0,1)';
SELECT count(*) FROM secret WHERE ctid = ANY (ARRAY(SELECT format('(%s,%s)', b, o)::tid FROM generate_series(0, 30) b, generate_series(1, 250) o));
SELECT count(*) FROM secret WHERE ctid >= '(0,0)' AND ctid < '(1000000,0)';
SELECT count(*) FROM secret WHERE ctid < (SELECT min(ctid) FROM secret);
SELECT currtid2('user_hostile.secret', '(0,1)');
SELECT currtid2('user_hostile.secret', '(4000,1)');
SELECT currtid2('user_hostile.secret', (SELECT ctid FROM secret WHERE id = 1)) = (SELECT ctid FROM secret WHERE id = 1) AS own;

-- Through functions and views of those who may more.
RESET ROLE;
CREATE FUNCTION as_superuser() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = user_hostile, pg_temp AS 'SELECT count(*) FROM secret';
CREATE FUNCTION as_superuser_plpgsql() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = user_hostile, pg_temp AS
    $$ DECLARE n bigint; BEGIN SELECT count(*) INTO n FROM secret; RETURN n; END $$;
CREATE VIEW of_superuser AS SELECT * FROM secret;
CREATE VIEW of_invoker WITH (security_invoker) AS SELECT * FROM secret;
CREATE VIEW barrier WITH (security_barrier) AS SELECT * FROM secret;
CREATE RULE noted AS ON INSERT TO shared DO ALSO SELECT count(*) FROM secret;
GRANT SELECT, INSERT, UPDATE, DELETE ON of_superuser, of_invoker, barrier TO regress_hostile_eve;
SET ROLE regress_hostile_eve;
SELECT as_superuser(), as_superuser_plpgsql();
SELECT (SELECT count(*) FROM of_superuser), (SELECT count(*) FROM of_invoker), (SELECT count(*) FROM barrier);
INSERT INTO shared VALUES (1, 'x');
UPDATE of_superuser SET word = word || '!' RETURNING id, word;
DELETE FROM barrier WHERE id > 2;
SET row_security = off;
SELECT as_superuser();
SELECT as_superuser_plpgsql();
SELECT count(*) FROM of_superuser;
SET row_security = on;

-- A leaky function in a condition meets own rows only, cheap as it claims to be.
CREATE FUNCTION told(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE 'seen: %', $1; RETURN true; END $$;
SELECT count(*) FROM secret WHERE told(word);
SELECT count(*) FROM secret WHERE told(word) AND id = 1;
SELECT count(*) FROM secret WHERE 1 / (id - 7) < 5;
SELECT count(*) FROM barrier WHERE told(word);

-- Cursors and prepared statements of others.
RESET ROLE;
BEGIN;
SET LOCAL kalam.user_id = 'victim';
DECLARE theirs CURSOR FOR SELECT id FROM secret ORDER BY id;
SET LOCAL kalam.user_id = 'regress_hostile_eve';
DECLARE mine SCROLL CURSOR FOR SELECT id, _user_id FROM secret ORDER BY id;
SET LOCAL kalam.user_id = 'victim';
FETCH ALL FROM mine;
FETCH FIRST FROM mine;
SELECT public.outcome($$UPDATE secret SET word = 'taken' WHERE CURRENT OF mine$$) IN ('24000', 'XX000', 'ok 0', '22023') AS refused;
ROLLBACK;
SET plan_cache_mode = force_generic_plan;
SET kalam.user_id = 'victim';
PREPARE look AS SELECT count(*) FROM secret WHERE id > $1;
EXECUTE look (0);
RESET kalam.user_id;
SET ROLE regress_hostile_eve;
EXECUTE look (0);
SET row_security = off;
EXECUTE look (0);
SET row_security = on;
RESET plan_cache_mode;

-- Writing.
UPDATE secret SET score = -1 WHERE id = 500;
UPDATE secret SET score = 0 RETURNING id;
DELETE FROM secret WHERE word LIKE 'word%';
DELETE FROM secret WHERE ctid = '(0,1)' RETURNING *;
UPDATE secret SET _user_id = 'victim' WHERE id = 1;
INSERT INTO secret VALUES (3, 3, 'planted', 3, '{}', 'victim');
INSERT INTO secret (id, word, _user_id) VALUES (1, 'planted', 'victim') ON CONFLICT DO NOTHING;
INSERT INTO secret (id, word, _user_id) VALUES (99999, 'planted', 'victim') ON CONFLICT DO NOTHING;
INSERT INTO secret (id, word, _user_id) VALUES (1, 'planted', 'victim') ON CONFLICT (_user_id, id) DO UPDATE SET word = 'x' WHERE told(secret.word);
INSERT INTO secret (id, word, _user_id) VALUES (99999, 'planted', 'victim') ON CONFLICT (_user_id, id) DO UPDATE SET word = 'x' WHERE told(secret.word);
INSERT INTO secret (id, word) VALUES (500, 'x') ON CONFLICT (id) DO UPDATE SET word = secret.word RETURNING id, word;
DELETE FROM secret WHERE id = 500;
INSERT INTO secret (id, word) VALUES (501, 'word 501') ON CONFLICT (word) DO NOTHING RETURNING id;
DELETE FROM secret WHERE id = 501;
INSERT INTO secret (id, word) VALUES (7, 'word 7') RETURNING id;
DELETE FROM secret WHERE id = 7;
MERGE INTO secret t USING (SELECT 600 AS id) s ON t.id = s.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN DO NOTHING;
SELECT id FROM secret WHERE id = 600 FOR UPDATE NOWAIT;
SELECT count(*) FROM (SELECT FROM secret FOR UPDATE SKIP LOCKED) s;
COPY secret (id, word) TO stdout;
COPY (SELECT count(*) FROM secret) TO stdout;
COPY secret (id, word, _user_id) FROM stdin;
700	planted	victim
\.
TRUNCATE secret;
SELECT id, word FROM secret ORDER BY id;

-- Foreign keys ask about own rows only.
INSERT INTO part VALUES (2, 7);
INSERT INTO part VALUES (3, 2, 'victim');
CREATE TABLE probe (who text, id int, FOREIGN KEY (who, id) REFERENCES secret (_user_id, id)) USING heap;
CREATE TABLE probe (id int, who text, FOREIGN KEY (who, id) REFERENCES secret (_user_id, id)) USING kalam_user;
CREATE TABLE probe (id int, FOREIGN KEY (_user_id, id) REFERENCES secret) USING kalam_user;
RESET ROLE;
CREATE TABLE probe (id int, FOREIGN KEY (_user_id, id) REFERENCES secret) USING kalam_user;
ALTER TABLE probe OWNER TO regress_hostile_eve;
SET ROLE regress_hostile_eve;
INSERT INTO probe VALUES (1);
INSERT INTO probe VALUES (9);
DELETE FROM secret WHERE id = 1;

-- Becoming somebody else.
SET kalam.user_id = 'victim';
SELECT set_config('kalam.user_id', 'victim', false);
RESET ROLE;
SET SESSION AUTHORIZATION regress_hostile_eve;
SET kalam.session_login = '10:password:0:victim';
SET ROLE regress_hostile_owner;
SELECT count(*) FROM secret;
CREATE FUNCTION pretend() RETURNS bigint LANGUAGE sql SET kalam.user_id = 'victim' AS 'SELECT count(*) FROM user_hostile.secret';
CREATE ROLE victim;
SELECT kalam.prepare_ddl();
ALTER TABLE secret DISABLE ROW LEVEL SECURITY;
RESET SESSION AUTHORIZATION;

-- Temporary functions of triggers and casts below the check of a foreign key run as the session's user.
RESET ROLE;
SET ROLE regress_hostile_owner;
CREATE TABLE room (id int PRIMARY KEY) USING kalam_shared;
CREATE TABLE visit (id int PRIMARY KEY, room int REFERENCES room ON DELETE CASCADE) USING kalam_user;
GRANT SELECT, INSERT, DELETE ON room, visit TO regress_hostile_eve;
CREATE FUNCTION peek() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'trigger % sees % visits and % secrets', TG_OP, (SELECT count(*) FROM user_hostile.visit), (SELECT count(*) FROM user_hostile.secret); RETURN OLD; END $$;
CREATE TRIGGER peeks BEFORE DELETE ON visit FOR EACH ROW EXECUTE FUNCTION peek();
RESET ROLE;
INSERT INTO room VALUES (1);
SET kalam.user_id = 'victim';
INSERT INTO visit SELECT i, 1 FROM generate_series(1, 2) i;
SET kalam.user_id = 'regress_hostile_eve';
INSERT INTO visit VALUES (1, 1);
DELETE FROM room;
SET row_security = off;
SELECT count(*) FROM visit;
SET row_security = on;

-- A search by bitmap begins before the query runs: below the check of a foreign key, and in functions of commands on whole tables.
SET ROLE regress_hostile_owner;
CREATE TABLE bag (words text[]) USING kalam_user;
CREATE INDEX ON bag USING gin (words);
GRANT SELECT, INSERT ON bag TO regress_hostile_eve;
CREATE FUNCTION count_bags() RETURNS bigint LANGUAGE plpgsql IMMUTABLE
    SET enable_seqscan = off AS $$ BEGIN RETURN (SELECT count(*) FROM user_hostile.bag WHERE words @> '{common}'); END $$;
CREATE OR REPLACE FUNCTION peek() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE NOTICE 'trigger % sees % bags', TG_OP, user_hostile.count_bags(); RETURN OLD; END $$;
RESET ROLE;
INSERT INTO room VALUES (2);
SET kalam.user_id = 'victim';
INSERT INTO bag SELECT '{common}' FROM generate_series(1, 2000);
SET kalam.user_id = 'regress_hostile_eve';
INSERT INTO bag VALUES ('{common}');
INSERT INTO visit VALUES (2, 2);
SET ROLE regress_hostile_eve;
SELECT count_bags();
DELETE FROM room WHERE id = 2;
CREATE TEMP TABLE own (i int) USING heap;
INSERT INTO own VALUES (1);
CREATE FUNCTION pg_temp.look(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RAISE NOTICE 'function sees % bags', user_hostile.count_bags(); RETURN 1; END $$;
CREATE INDEX ON own (pg_temp.look(i));
ALTER TABLE own ADD COLUMN j int DEFAULT pg_temp.look(2);
DROP TABLE own;
DROP FUNCTION pg_temp.look;
RESET ROLE;

-- Plans: what was found elsewhere does not show.
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM secret;
SET enable_seqscan = off;
SET enable_indexscan = off;
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM secret WHERE words && '{w7, mine}';
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM secret WHERE room = 1 AND words && '{w7, mine}';
SET enable_bitmapscan = off;
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT id FROM secret WHERE id > 0;
RESET enable_indexscan;
RESET enable_seqscan;
RESET enable_bitmapscan;
CREATE FUNCTION small_estimate(query text) RETURNS boolean LANGUAGE plpgsql AS
    $$ DECLARE j json; BEGIN EXECUTE 'EXPLAIN (FORMAT json) ' || query INTO j; RETURN (j->0->'Plan'->>'Plan Rows')::int < 2500; END $$;
SELECT small_estimate('SELECT * FROM user_hostile.secret');

-- The victim has lost nothing.
SET kalam.user_id = 'victim';
SELECT count(*), sum(score), md5(string_agg(word, ',' ORDER BY id)) = md5((SELECT string_agg('word ' || i, ',' ORDER BY i) FROM generate_series(1, 2500) i)) AS intact FROM secret;
RESET kalam.user_id;

SET client_min_messages = warning;
DROP SCHEMA user_hostile CASCADE;
DROP ROLE regress_hostile_eve;
DROP ROLE regress_hostile_owner;
