-- What somebody tries to learn of others' rows by counters, statistics and definitions. On heap there are no user tables: see
-- user_hostile_counters_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE ROLE regress_counters_eve;
CREATE SCHEMA user_counters;
GRANT USAGE, CREATE ON SCHEMA user_counters TO regress_counters_eve;
SET search_path = user_counters, public;
-- The rows of the nodes of a plan, with what the plan does.
CREATE FUNCTION node_rows(statement text) RETURNS TABLE (node text, rows text, fetches text) LANGUAGE plpgsql AS $$
DECLARE
    plan jsonb;
BEGIN
    EXECUTE 'EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off, FORMAT json) ' || statement INTO plan;
    RETURN QUERY SELECT n ->> 'Node Type', n ->> 'Actual Rows', n ->> 'Heap Fetches' FROM jsonb_path_query(plan, '$.**?(exists(@."Node Type"))') n;
END $$;
GRANT EXECUTE ON FUNCTION node_rows TO PUBLIC;
CREATE TABLE secret (id int PRIMARY KEY, word text, amount int) USING kalam_user;
CREATE INDEX by_word ON secret (word);
CREATE INDEX by_amount ON secret USING gist (amount);
CREATE INDEX by_hash ON secret USING hash (word);
GRANT SELECT, INSERT, UPDATE, DELETE ON secret TO PUBLIC;
SET kalam.user_id = 'victim';
INSERT INTO secret SELECT i, 'Tr0ub4dor ' || i, 70000 + i FROM generate_series(1, 100) i;
RESET kalam.user_id;

-- Another user named in a condition: by MERGE, and by a function that becomes part of the query.
SET ROLE regress_counters_eve;
CREATE FUNCTION peek(whose text, low text, high text) RETURNS SETOF secret LANGUAGE sql STABLE AS
    'SELECT * FROM secret WHERE _user_id = whose AND word >= low AND word < high';
CREATE FUNCTION peek_id(whose text, high int) RETURNS SETOF int LANGUAGE sql STABLE AS
    'SELECT id FROM secret WHERE _user_id = whose AND id < high';
SET enable_seqscan = off;
SET enable_indexscan = off;
SELECT * FROM node_rows($$MERGE INTO secret t USING (SELECT 1) v ON t._user_id = 'victim' AND t.word >= 'T' AND t.word < 'U'
    WHEN MATCHED THEN DO NOTHING$$) WHERE node LIKE '%Scan%' AND rows <> '0';
SELECT * FROM node_rows($$SELECT * FROM peek('victim', 'T', 'U')$$) WHERE rows <> '0';
RESET enable_indexscan;
SET enable_bitmapscan = off;
SELECT * FROM node_rows($$SELECT * FROM peek('victim', 'T', 'U')$$) WHERE rows <> '0';
SELECT * FROM node_rows($$SELECT * FROM peek_id('victim', 50)$$) WHERE rows <> '0' OR fetches <> '0';
SELECT count(*) FROM peek('victim', 'T', 'U');
INSERT INTO secret VALUES (1, 'Trouble', 5);
SELECT id, word FROM peek('regress_counters_eve', 'T', 'U');
SELECT * FROM peek_id('regress_counters_eve', 50);
RESET enable_bitmapscan;

-- What indexes count. Searches are counted, not what they meet.
SELECT pg_stat_get_xact_tuples_returned('by_word'::regclass) + pg_stat_get_xact_tuples_returned('by_amount'::regclass)
    + pg_stat_get_xact_tuples_returned('by_hash'::regclass) + pg_stat_get_xact_tuples_returned('secret_pkey'::regclass) AS met;
BEGIN;
SELECT count(*) FROM secret WHERE amount BETWEEN 0 AND 70050;
SELECT count(*) FROM secret WHERE word = 'Tr0ub4dor 5';
MERGE INTO secret t USING (SELECT 1) v ON t._user_id = 'victim' AND t.word >= 'T' AND t.word < 'U' WHEN MATCHED THEN DO NOTHING;
SAVEPOINT s;
INSERT INTO secret (id, _user_id) VALUES (1, 'victim') ON CONFLICT DO NOTHING;
ROLLBACK TO s;
SELECT (SELECT count(*) FROM secret WHERE amount > 0), pg_stat_get_xact_tuples_returned('by_amount'::regclass);
SELECT pg_stat_get_xact_tuples_returned('by_word'::regclass) AS word, pg_stat_get_xact_tuples_returned('by_amount'::regclass) AS amount,
    pg_stat_get_xact_tuples_returned('by_hash'::regclass) AS hash, pg_stat_get_xact_tuples_returned('secret_pkey'::regclass) AS key;
COMMIT;
SELECT pg_stat_get_xact_tuples_returned('by_amount'::regclass);
-- An index gets a new description while the query begins: a function in the choice of partitions has it changed.
RESET ROLE;
CREATE FUNCTION touch() RETURNS int LANGUAGE plpgsql SECURITY DEFINER SET search_path = user_counters AS $$
BEGIN
    ALTER INDEX by_hash SET (fillfactor = 80);
    RETURN 1;
END $$;
CREATE FUNCTION chosen() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN touch(); END $$;
-- It would be the better index.
DROP INDEX by_word;
SET ROLE regress_counters_eve;
CREATE TABLE parted (k int) PARTITION BY LIST (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1) USING heap;
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2) USING heap;
SET enable_bitmapscan = off;
BEGIN;
SELECT 1 FROM parted WHERE k = chosen() UNION ALL SELECT amount FROM secret WHERE word = 'Tr0ub4dor 5';
SELECT pg_stat_get_xact_tuples_returned('by_hash'::regclass);
COMMIT;
-- A cursor goes on after its index has lost its counters.
RESET ROLE;
GRANT SET ON PARAMETER track_counts TO regress_counters_eve;
SET ROLE regress_counters_eve;
BEGIN;
DECLARE c CURSOR FOR SELECT amount FROM secret WHERE word = 'Tr0ub4dor 5';
SET track_counts = off;
EXPLAIN (COSTS off) SELECT amount FROM secret WHERE word = 'Tr0ub4dor 5';
SET track_counts = on;
SELECT pg_relation_size('by_hash') > 0 AS opened;
FETCH ALL FROM c;
SELECT pg_stat_get_xact_tuples_returned('by_hash'::regclass);
COMMIT;
RESET enable_bitmapscan;
RESET ROLE;
CREATE INDEX by_word ON secret (word);
REVOKE SET ON PARAMETER track_counts FROM regress_counters_eve;
RESET enable_seqscan;
-- A held cursor is read to its end when the transaction ends that has loaded the library.
CREATE TABLE held (id int PRIMARY KEY) USING kalam_user;
INSERT INTO held VALUES (1), (2), (3);
\c -
SET search_path = user_counters, public;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
BEGIN;
CREATE TEMP TABLE loads (a int);
DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT * FROM held WHERE id < 4;
COMMIT;
FETCH ALL FROM c;
-- A session tells of its searches once a second, and when it ends.
\c -
SET search_path = user_counters, public;
DO $$ BEGIN
    FOR i IN 1 .. 1000 LOOP
        PERFORM pg_stat_clear_snapshot();
        EXIT WHEN (SELECT idx_scan >= 2 FROM pg_stat_user_indexes WHERE indexrelname = 'by_amount');
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT idx_scan >= 2 AS searched, idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'by_amount';

-- How different values are is not compared between users, nor their order.
CREATE TABLE pay (id int PRIMARY KEY, salary int) USING kalam_user WITH (autovacuum_enabled = off);
SET row_security = off;
INSERT INTO pay (id, salary, _user_id) VALUES (1, 73112, 'victim'), (1, 73112, 'eve');
ANALYZE pay;
SELECT n_distinct, correlation FROM pg_stats WHERE schemaname = 'user_counters' AND tablename = 'pay' AND attname = 'salary';
UPDATE pay SET salary = 5 WHERE _user_id = 'eve';
ANALYZE pay;
SELECT n_distinct, correlation FROM pg_stats WHERE schemaname = 'user_counters' AND tablename = 'pay' AND attname = 'salary';
RESET row_security;

-- Statistics of a partitioned table from before it had user tables.
CREATE TABLE whole (id int, _user_id text COLLATE "C" NOT NULL DEFAULT kalam.user_id(), word text) PARTITION BY RANGE (id);
CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (1000) USING heap;
INSERT INTO whole SELECT i, 'victim', 'word ' || i % 3 FROM generate_series(1, 100) i;
CREATE STATISTICS of_both ON _user_id, word FROM whole;
ANALYZE whole;
SELECT count(*) FROM pg_stats WHERE schemaname = 'user_counters' AND tablename IN ('whole', 'part') AND most_common_vals IS NOT NULL;
ALTER TABLE whole DETACH PARTITION part;
ALTER TABLE part SET ACCESS METHOD kalam_user;
ALTER TABLE whole ATTACH PARTITION part FOR VALUES FROM (0) TO (1000);
DROP STATISTICS of_both;
ALTER TABLE whole ATTACH PARTITION part FOR VALUES FROM (0) TO (1000);
SELECT count(*) FROM pg_stats WHERE schemaname = 'user_counters' AND tablename IN ('whole', 'part') AND most_common_vals IS NOT NULL;

-- Definitions that would mix or lose rows.
\set VERBOSITY terse
CREATE TABLE own (_user_id text COLLATE "C" NOT NULL, id int, ou text, rid int, PRIMARY KEY (_user_id, id)) USING heap;
ALTER TABLE own SET ACCESS METHOD kalam_user, ADD FOREIGN KEY (ou, rid) REFERENCES own (_user_id, id);
ALTER TABLE own SET ACCESS METHOD kalam_user, ADD FOREIGN KEY (_user_id, rid) REFERENCES own (_user_id, id), ADD UNIQUE (ou);
SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'own'::regclass ORDER BY 1;
ALTER TYPE own RENAME ATTRIBUTE _user_id TO owner;
ALTER VIEW own RENAME COLUMN _user_id TO owner;
CREATE RULE "_RETURN" AS ON SELECT TO own DO INSTEAD SELECT 'x'::text COLLATE "C" AS _user_id, 1 AS id, 'x'::text AS ou, 1 AS rid;
CREATE TABLE heap_parent (id int, _user_id text COLLATE "C" NOT NULL) USING heap;
CREATE TABLE to_be (id int, _user_id text COLLATE "C" NOT NULL) USING heap;
ALTER TABLE to_be INHERIT heap_parent, SET ACCESS METHOD kalam_user;
CREATE TYPE pair AS (id int, _user_id text);
CREATE TABLE typed OF pair USING heap;
ALTER TABLE typed SET ACCESS METHOD kalam_user;
CREATE TABLE computed (id int, _user_id text COLLATE "C" GENERATED ALWAYS AS ('user ' || id::text) STORED) USING heap;
ALTER TABLE computed SET ACCESS METHOD kalam_user;
CREATE UNIQUE INDEX blurred ON secret (_user_id COLLATE "C", id);
ALTER TABLE secret ADD CONSTRAINT apart EXCLUDE USING gist (_user_id WITH <>, id WITH =);

-- What is compared with the scan's user otherwise than by = is a condition like others.
CREATE TABLE compared (id int) USING kalam_user;
INSERT INTO compared VALUES (1), (2);
SELECT count(*) FROM compared WHERE _user_id <> kalam.scan_user();
DELETE FROM compared WHERE _user_id > kalam.scan_user();
SELECT count(*) FROM compared WHERE _user_id >= kalam.scan_user();

-- A foreign key refers to the table that the name means.
CREATE TABLE public.regress_named (id int PRIMARY KEY) USING heap;
CREATE TABLE regress_named (id int PRIMARY KEY, other int) USING kalam_user;
ALTER TABLE regress_named ADD FOREIGN KEY (other) REFERENCES public.regress_named (id);
SET search_path = public, user_counters;
ALTER TABLE user_counters.regress_named ADD FOREIGN KEY (other) REFERENCES regress_named (id);
SET search_path = user_counters, public;
ALTER TABLE regress_named ADD FOREIGN KEY (other) REFERENCES regress_named (id);

-- Only one change of the access method at a time is checked.
ALTER TABLE own SET ACCESS METHOD kalam_user, SET ACCESS METHOD heap;
ALTER TABLE heap_parent SET ACCESS METHOD heap, SET ACCESS METHOD kalam_user;

-- An index in another order of the users is searched as the planner has it.
CREATE TABLE ordered (id int, v int) USING kalam_user;
CREATE INDEX by_icu_order ON ordered (_user_id COLLATE "en-x-icu", v);
INSERT INTO ordered SELECT i, i FROM generate_series(1, 100) i;
SET kalam.user_id = 'Zed';
INSERT INTO ordered SELECT i, i FROM generate_series(1, 100) i;
SET kalam.user_id = 'amy';
INSERT INTO ordered SELECT i, i FROM generate_series(1, 100) i;
SET enable_seqscan = off;
SET kalam.user_id = 'Zed';
SELECT count(*) FROM ordered WHERE v = 3;
SELECT count(*) FROM (SELECT v FROM ordered ORDER BY _user_id COLLATE "en-x-icu", v LIMIT 5) s;
RESET enable_seqscan;
RESET kalam.user_id;

-- What INSERT and COPY meet in indexes, as the first statement of a session that plans no search.
\c -
SET search_path = user_counters, public;
SET ROLE regress_counters_eve;
BEGIN;
INSERT INTO secret VALUES (2, 'Tr0ub4dor 5', 1);
SELECT pg_stat_get_xact_blocks_fetched('by_hash'::regclass) + pg_stat_get_xact_blocks_fetched('by_word'::regclass) AS met;
ROLLBACK;
\c -
SET search_path = user_counters, public;
SET ROLE regress_counters_eve;
BEGIN;
COPY secret (id, word, amount) FROM stdin;
2	Tr0ub4dor 5	1
\.
SELECT pg_stat_get_xact_blocks_fetched('by_hash'::regclass) + pg_stat_get_xact_blocks_fetched('by_word'::regclass) AS met;
ROLLBACK;
RESET ROLE;
\set VERBOSITY terse

-- What a range of blocks of several users has in common: the victim has 4711, eve has 1 in the same range.
CREATE TABLE pins (id int PRIMARY KEY, pin int, tags int[]) USING kalam_user;
CREATE INDEX pins_by_bloom ON pins USING brin (pin int4_bloom_ops);
CREATE INDEX pins_by_range ON pins USING brin (id int4_minmax_ops);
CREATE INDEX pins_by_tag ON pins USING gin (tags);
GRANT ALL ON pins TO regress_counters_eve;
SET kalam.user_id = 'victim';
INSERT INTO pins SELECT i, 4711, '{42}' FROM generate_series(1000, 1100) i;
RESET kalam.user_id;
SET ROLE regress_counters_eve;
INSERT INTO pins VALUES (1, 1, '{42,43}');
SET enable_seqscan = off;
CREATE FUNCTION pg_temp.met(condition text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE line text; seen text; before bigint := pg_stat_get_xact_tuples_fetched('pins'::regclass);
    blocks bigint := pg_stat_get_xact_blocks_fetched('pins'::regclass);
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM pins WHERE ' || condition LOOP
        IF line !~ 'Cond:' THEN seen := concat_ws(E'\n', seen, line); END IF;
    END LOOP;
    RETURN concat_ws(E'\n', seen, pg_stat_get_xact_tuples_fetched('pins'::regclass) - before, pg_stat_get_xact_blocks_fetched('pins'::regclass) - blocks);
END $$;
SELECT pg_temp.met('pin = 4711');
SELECT pg_temp.met('pin = 4711') = pg_temp.met('pin = 4712') AS same_by_bloom,
    pg_temp.met('id = 1050') = pg_temp.met('id = 2000') AS same_by_range,
    pg_temp.met('tags @> ARRAY[42]') = pg_temp.met('tags @> ARRAY[43]') AS same_by_tag;
DROP FUNCTION pg_temp.met;
RESET enable_seqscan;
RESET ROLE;

-- Clustering by an index in which users are mixed.
ALTER TABLE secret CLUSTER ON by_amount;
CLUSTER secret;

-- A cursor that is rewound goes on as the user who opened it.
SET kalam.user_id = 'victim';
BEGIN;
DECLARE scrolled SCROLL CURSOR FOR SELECT id FROM secret WHERE id > 0 ORDER BY id;
FETCH 2 FROM scrolled;
SET LOCAL kalam.user_id = 'eve';
MOVE ABSOLUTE 0 IN scrolled;
FETCH 2 FROM scrolled;
COMMIT;
BEGIN;
DECLARE held CURSOR WITH HOLD FOR SELECT id FROM secret ORDER BY id LIMIT 5;
FETCH 1 FROM held;
SET LOCAL kalam.user_id = 'eve';
COMMIT;
FETCH ALL FROM held;
CLOSE held;

RESET kalam.user_id;
SET client_min_messages = warning;
DROP SCHEMA user_counters CASCADE;
DROP EXTENSION btree_gist;
DROP TABLE public.regress_named;
DROP ROLE regress_counters_eve;
