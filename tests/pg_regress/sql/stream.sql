-- Stream tables: events, for each user their own, that vanish after their lifetime.
CREATE SCHEMA stream;
SET search_path = stream, public;
CREATE TABLE typing (room int, who text, at timestamptz DEFAULT clock_timestamp()) USING kalam_stream;
CREATE INDEX ON typing (room);
\d typing
-- Waits until the table is empty for a new transaction.
CREATE PROCEDURE until_empty(stream regclass) LANGUAGE plpgsql AS $$
DECLARE
    found boolean;
BEGIN
    LOOP
        COMMIT;
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', stream) INTO found;
        EXIT WHEN NOT found;
    END LOOP;
END $$;

-- A lifetime is needed first.
INSERT INTO typing (room, who) VALUES (1, 'too early');
ALTER TABLE typing SET (kalam.ttl = 'sometime');
ALTER TABLE typing SET (kalam.ttl = '1 hour');
INSERT INTO typing (room, who) VALUES (1, 'ann'), (2, 'ann');
SET kalam.user_id = 'ben';
INSERT INTO typing (room, who) SELECT 3, 'ben ' || i FROM generate_series(1, 500) i;
COPY typing (room, who) FROM stdin;
4	copied
\.
SELECT room, count(*), min(_user_id) FROM typing GROUP BY 1 ORDER BY 1;
RESET kalam.user_id;
SELECT room, who FROM typing ORDER BY room;

-- What they do, and what they do not.
DELETE FROM typing WHERE room = 2 RETURNING who;
UPDATE typing SET who = 'x';
UPDATE typing SET who = 'x' WHERE false;
INSERT INTO typing (room, who) VALUES (1, 'x') ON CONFLICT (room) DO UPDATE SET who = 'y';
CREATE TABLE keyed (id int PRIMARY KEY, v text) USING kalam_stream WITH (kalam.ttl = '1 hour', autovacuum_enabled = off);
INSERT INTO keyed VALUES (1, 'a'), (2, 'b');
INSERT INTO keyed VALUES (1, 'c');
INSERT INTO keyed VALUES (1, 'c') ON CONFLICT (id) DO NOTHING;
INSERT INTO keyed VALUES (1, 'c') ON CONFLICT (id) DO UPDATE SET v = 'd';
MERGE INTO keyed k USING (SELECT 1 AS id) s ON k.id = s.id WHEN MATCHED THEN UPDATE SET v = 'd';
MERGE INTO keyed k USING (SELECT 2 AS id) s ON k.id = s.id WHEN MATCHED THEN DELETE;
SELECT * FROM keyed FOR UPDATE;
VACUUM FULL keyed;
ALTER TABLE keyed ALTER COLUMN id TYPE bigint;
ALTER TABLE keyed ADD COLUMN plain int DEFAULT 7;
SELECT * FROM keyed;
\set VERBOSITY sqlstate
SELECT kalam.flush('keyed');
UPDATE typing SET who = 'x';
INSERT INTO typing (room, who) SELECT 1, 'x' FROM generate_series(1, 3);
ALTER TABLE keyed SET ACCESS METHOD kalam_shared;
\set VERBOSITY default

-- The end of the lifetime: by the start of the transaction.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM keyed;
ALTER TABLE keyed SET (kalam.ttl = '1 ms');
COMMIT;
CALL until_empty('keyed');
SELECT count(*) FROM keyed;
SET enable_seqscan = off;
SELECT * FROM keyed WHERE id = 1;
SET enable_indexscan = off;
SELECT * FROM keyed WHERE id = 1;
RESET enable_indexscan;
RESET enable_seqscan;
SELECT * FROM keyed WHERE ctid = '(0,1)';
SELECT count(*) FROM keyed TABLESAMPLE bernoulli (100);
SET row_security = off;
SELECT count(*) FROM keyed;
SET row_security = on;
DELETE FROM keyed;
-- A key is free again.
ALTER TABLE keyed SET (kalam.ttl = '1 hour');
SELECT id FROM keyed;
ALTER TABLE keyed SET (kalam.ttl = '1 ms');
CALL until_empty('keyed');
INSERT INTO keyed VALUES (1, 'anew');
CALL until_empty('keyed');
INSERT INTO keyed VALUES (1, 'anew') ON CONFLICT DO NOTHING;

-- VACUUM gives the storage back, so that a longer lifetime brings nothing back.
CALL until_empty('keyed');
CALL wait_for_old_snapshots();
VACUUM keyed;
ALTER TABLE keyed SET (kalam.ttl = '1 hour');
SELECT count(*) FROM keyed;
INSERT INTO keyed SELECT i, repeat('x', 1000) FROM generate_series(1, 500) i WHERE pg_sleep(0.001) IS NOT NULL;
DELETE FROM keyed WHERE id = 1;
INSERT INTO keyed VALUES (1, 'again');
SELECT count(*), min(id), max(id) FROM keyed;

-- At most so many bytes: the oldest go.
ALTER TABLE keyed SET (kalam.max_bytes = 200000);
CALL wait_for_old_snapshots();
VACUUM keyed;
SELECT count(*) BETWEEN 150 AND 200 AS kept, max(id) FROM keyed WHERE id > 1;
ALTER TABLE keyed RESET (kalam.max_bytes);

-- A job gives the storage back by itself.
SELECT clock_timestamp() AS since \gset
ALTER TABLE keyed SET (kalam.ttl = '1 ms');
CALL until_empty('keyed');
CREATE PROCEDURE until_evicted(since timestamptz) LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        COMMIT;
        EXIT WHEN EXISTS (SELECT FROM kalam.jobs WHERE id LIKE 'SE%' AND tablename = 'keyed' AND state = 'completed' AND message <> '0 expired rows gone'
            AND started_at > since);
    END LOOP;
END $$;
CALL until_evicted(:'since');
ALTER TABLE keyed SET (kalam.ttl = '1 hour');
SELECT count(*) FROM keyed;

-- A deleted row would outlive those that are not: it is not kept.
BEGIN;
DELETE FROM typing;
SELECT count(*) FROM kalam.history('typing');
ROLLBACK;

-- Rows without a lifetime come with a dump only.
CREATE TABLE early (i int) USING kalam_stream;
INSERT INTO early VALUES (1);
SET row_security = off;
INSERT INTO early (i, _user_id) VALUES (1, 'ann');
RESET row_security;
CREATE TABLE filled USING kalam_stream WITH (kalam.ttl = '1 hour') AS SELECT 1 AS i;
SET default_table_access_method = kalam_stream;
CREATE TABLE filled AS SELECT 1 AS i;
RESET default_table_access_method;
CREATE TABLE filled USING kalam_stream WITH (kalam.ttl = '1 hour') AS SELECT 1 AS i WITH NO DATA;
INSERT INTO filled SELECT 1;

-- TRUNCATE works, and rolls back.
BEGIN;
TRUNCATE typing;
SELECT count(*) FROM typing;
ROLLBACK;
SELECT count(*) FROM typing;
TRUNCATE typing;
SELECT count(*) FROM typing;

SET client_min_messages = warning;
DROP SCHEMA stream CASCADE;
