-- Parallel workers of a user's statement see what their leader sees.
CREATE SCHEMA user_parallel;
SET search_path = user_parallel, public;
CREATE TABLE notes (id int PRIMARY KEY, room int, body text) USING kalam_user;
CREATE INDEX notes_room ON notes (room);
CREATE INDEX notes_brin ON notes USING brin (room);
CREATE TABLE rooms (room int, name text) USING kalam_shared;
INSERT INTO rooms SELECT i, 'room ' || i FROM generate_series(0, 6) i;
SET kalam.user_id = 'ann';
INSERT INTO notes SELECT i, i % 7, 'ann ' || repeat('x', 200) FROM generate_series(1, 3000) i;
SET kalam.user_id = 'ben';
INSERT INTO notes SELECT i, i % 7, 'ben ' || repeat('y', 200) FROM generate_series(1, 5000) i;
VACUUM ANALYZE notes;
VACUUM ANALYZE rooms;
SET min_parallel_table_scan_size = 0;
SET min_parallel_index_scan_size = 0;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET max_parallel_workers_per_gather = 2;

-- What each kind of scan counts, and whether workers took part. Only a row of another user has another name in front.
CREATE FUNCTION counted(query text, OUT rows bigint, OUT strange bigint, OUT node text, OUT launched boolean) LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    EXECUTE format('SELECT count(*), count(*) FILTER (WHERE body NOT LIKE current_setting(''kalam.user_id'') || '' %%'') FROM (%s) q', query)
        INTO rows, strange;
    FOR line IN EXECUTE format('EXPLAIN (ANALYZE, VERBOSE, COSTS OFF, TIMING OFF) SELECT count(*) FROM (%s) q', query) LOOP
        node := coalesce(node, substring(line FROM 'Parallel (?:Seq|Index|Index Only|Bitmap Heap) Scan'));
        launched := coalesce(launched, false) OR line ~ 'Workers Launched: [12]';
    END LOOP;
END $$;
SET kalam.user_id = 'ann';
SELECT * FROM counted('SELECT body FROM notes');
SELECT * FROM counted('SELECT body FROM notes JOIN rooms USING (room) WHERE name <> ''room 1''');
SELECT * FROM counted('SELECT body FROM notes UNION ALL SELECT body FROM notes');
CALL only_scan('bitmapscan');
SELECT * FROM counted('SELECT body FROM notes WHERE room IN (1, 2, 3)');
DROP INDEX notes_room;
SELECT * FROM counted('SELECT body FROM notes WHERE room BETWEEN 1 AND 3');
CREATE INDEX notes_room ON notes (room);
CALL only_scan('indexscan');
SELECT * FROM counted('SELECT body FROM notes WHERE room > 2');
CALL only_scan('any');
SET kalam.user_id = 'carl';
SELECT count(*) FROM notes;
SET kalam.user_id = 'ben';
SELECT * FROM counted('SELECT body FROM notes');
SET row_security = off;
SELECT count(*), min(_user_id), max(_user_id) FROM notes;
RESET row_security;

-- A plan that is kept, run for one user after the other.
PREPARE whose AS SELECT count(*), min(left(body, 3)), max(left(body, 3)) FROM notes;
SET plan_cache_mode = force_generic_plan;
EXECUTE whose;
SET kalam.user_id = 'ann';
EXECUTE whose;
EXPLAIN (COSTS OFF) EXECUTE whose;

-- The user changes between the start of a query and its run, below it, and with the function that contains it.
BEGIN;
DECLARE reader CURSOR FOR SELECT left(body, 3), count(*) FROM notes GROUP BY 1;
SET LOCAL kalam.user_id = 'ben';
FETCH ALL FROM reader;
COMMIT;
CREATE FUNCTION of_ben() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE SET kalam.user_id = 'ben'
    AS 'SELECT count(*) FROM user_parallel.notes';
SELECT of_ben(), count(*), max(left(body, 3)) FROM notes;
SELECT max(of_ben()), count(*), max(left(body, 3)) FROM notes WHERE of_ben() = 5000 AND id % 1000 = 0;
CREATE FUNCTION of_me() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT count(*) FROM user_parallel.notes';
SELECT max(of_me()), min(of_me()), count(*) FROM notes WHERE id % 1000 = 0;

-- A login reaches the workers, too.
CALL only_scan('any');
RESET kalam.user_id;
SELECT kalam.create_user('parallel_ben', 'a good password');
SELECT kalam.login('parallel_ben', 'a good password');
INSERT INTO notes SELECT i, i % 7, 'own ' || repeat('z', 200) FROM generate_series(1, 2000) i;
SELECT count(*), min(left(body, 3)), max(left(body, 3)) FROM notes;
SELECT kalam.logout();
SET kalam.user_id = 'ann';

-- Rows that a transaction has written itself, and a list of blocks that grows while a cursor is open.
BEGIN;
INSERT INTO notes SELECT i, 9, 'ann ' || repeat('w', 200) FROM generate_series(10001, 14000) i;
SELECT * FROM counted('SELECT body FROM notes');
ROLLBACK;
SELECT * FROM counted('SELECT body FROM notes');
SET client_min_messages = warning;
DROP SCHEMA user_parallel CASCADE;
