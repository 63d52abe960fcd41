-- Hash indexes: build, insert into, lookups, changes.
CREATE SCHEMA hash_index;
SET search_path = hash_index, public;

CREATE TABLE session (id int, token text, n int);
INSERT INTO session SELECT i, md5(i::text), i % 10 FROM generate_series(1, 3000) i;
CREATE INDEX session_token ON session USING hash (token);
CREATE INDEX session_n ON session USING hash (n) WHERE n < 3;
INSERT INTO session SELECT i, md5(i::text), i % 10 FROM generate_series(3001, 6000) i;

CALL only_scan('indexscan');
SELECT plan_has($$SELECT id FROM session WHERE token = md5('77')$$, 'session_token');
SELECT id FROM session WHERE token = md5('77');
SELECT id FROM session WHERE token = md5('5999');
SELECT id FROM session WHERE token = 'nothing';
SELECT count(*), sum(id) FROM session WHERE n = 2;
CALL only_scan('bitmapscan');
SELECT count(*), sum(id) FROM session WHERE n = 2;
SELECT id FROM session WHERE token = md5('10') OR token = md5('20') ORDER BY id;
CALL only_scan('indexscan');

UPDATE session SET token = 'changed' WHERE id = 77;
UPDATE session SET n = n WHERE id = 78;
DELETE FROM session WHERE id = 79;
SELECT id FROM session WHERE token = md5('77');
SELECT id FROM session WHERE token = 'changed';
SELECT id FROM session WHERE token = md5('78');
SELECT id FROM session WHERE token = md5('79');
BEGIN;
UPDATE session SET token = 'undone' WHERE id < 100;
SELECT count(*) FROM session WHERE token = 'undone';
ROLLBACK;
SELECT count(*) FROM session WHERE token = 'undone';
SELECT count(*) FROM session s JOIN generate_series(1, 6000) i ON s.token = md5(i::text);
VACUUM session;
SELECT count(*) FROM session s JOIN generate_series(1, 6000) i ON s.token = md5(i::text);
REINDEX INDEX session_token;
SELECT count(*) FROM session s JOIN generate_series(1, 6000) i ON s.token = md5(i::text);

-- Many equal keys: overflow pages of the index.
CREATE TABLE skewed (k int, v int);
CREATE INDEX ON skewed USING hash (k);
INSERT INTO skewed SELECT i % 2, i FROM generate_series(1, 4000) i;
SELECT count(*), sum(v) FROM skewed WHERE k = 1;
DELETE FROM skewed WHERE v > 100;
VACUUM skewed;
SELECT count(*), sum(v) FROM skewed WHERE k = 1;
-- Forwards, backwards and forwards again through a hash index.
DO $$
DECLARE
    c SCROLL CURSOR FOR SELECT v FROM skewed WHERE k = 1;
    moved int;
BEGIN
    OPEN c;
    MOVE FORWARD ALL FROM c;
    GET DIAGNOSTICS moved = ROW_COUNT;
    RAISE NOTICE 'forward %', moved;
    MOVE BACKWARD ALL FROM c;
    GET DIAGNOSTICS moved = ROW_COUNT;
    RAISE NOTICE 'backward %', moved;
    MOVE FORWARD 10 FROM c;
    GET DIAGNOSTICS moved = ROW_COUNT;
    RAISE NOTICE 'forward %', moved;
END $$;

-- Hash exclusion serves as a unique key of any width.
CREATE TABLE hash_unique (v text, EXCLUDE USING hash (v WITH =));
INSERT INTO hash_unique VALUES (noise(1, 20000)), ('b'), (NULL), (NULL);
\set VERBOSITY sqlstate
INSERT INTO hash_unique VALUES (noise(1, 20000));
\set VERBOSITY default
INSERT INTO hash_unique VALUES ('b') ON CONFLICT DO NOTHING;
SELECT count(*) FROM hash_unique;
CALL only_scan('any');
