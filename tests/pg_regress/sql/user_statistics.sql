-- What ANALYZE learns of a user table: numbers about its values, and none of the values. On heap there are no user tables: see
-- user_statistics_1.out.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA user_statistics;
SET search_path = user_statistics, public;
CREATE FUNCTION estimate(query text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    plan json;
BEGIN
    EXECUTE 'EXPLAIN (FORMAT json) ' || query INTO plan;
    RETURN plan -> 0 -> 'Plan' ->> 'Plan Rows';
END $$;
-- Rows of pg_statistic for a table and its indexes, and those among them with values.
CREATE FUNCTION known(of regclass, OUT columns bigint, OUT with_values bigint) LANGUAGE sql AS $$
    SELECT count(*), count(*) FILTER (WHERE num_nonnulls(stavalues1, stavalues2, stavalues3, stavalues4, stavalues5) > 0)
    FROM pg_statistic WHERE starelid = of OR starelid IN (SELECT indexrelid FROM pg_index WHERE indrelid = of)
$$;

CREATE TABLE message (id bigint PRIMARY KEY, kind text, tags text[], nothing int, span int4range, document tsvector, place point, note text)
    USING kalam_user WITH (autovacuum_enabled = off);
CREATE INDEX by_kind ON message (lower(kind));
CREATE INDEX by_tags ON message USING gin (tags);
SET row_security = off;
INSERT INTO message (id, kind, tags, span, document, place, note, _user_id)
SELECT i, 'kind ' || i % 10, ARRAY['tag', 'tag ' || i % 7], int4range(i, i + 5), to_tsvector('simple', 'word ' || i % 5), point(i, i),
    CASE WHEN i % 4 = 0 THEN 'note' END, 'user ' || u
FROM generate_series(1, 3) u, generate_series(1, 3000) i;
ANALYZE message;
SELECT attname, null_frac, avg_width > 0 AS width, n_distinct, correlation IS NOT NULL AS correlation,
    num_nonnulls(most_common_vals, most_common_freqs, histogram_bounds, most_common_elems, most_common_elem_freqs, elem_count_histogram) AS others
FROM pg_stats WHERE schemaname = 'user_statistics' AND tablename = 'message' ORDER BY attname;
SELECT * FROM known('message');
SELECT reltuples FROM pg_class WHERE oid = 'message'::regclass;
SELECT relname, reltuples > 0 AS counted FROM pg_class WHERE oid IN ('by_kind'::regclass, 'by_tags'::regclass) ORDER BY 1;

-- The estimates of one user's statement.
RESET row_security;
SET kalam.user_id = 'user 2';
SELECT estimate('SELECT * FROM message') BETWEEN 2700 AND 3300 AS rows, estimate('SELECT * FROM message WHERE id = 7') AS by_key;
SELECT estimate($$SELECT * FROM message WHERE kind = 'kind 7'$$) BETWEEN 270 AND 330 AS of_kind;
SELECT estimate('SELECT * FROM message WHERE note IS NULL') BETWEEN 2100 AND 2400 AS without_note;
-- A kept plan may run for others who have more: who has few rows, or none, is supposed to have some.
SET kalam.user_id = 'nobody yet';
SELECT estimate('SELECT * FROM message') BETWEEN 500 AND 2500 AS some;
EXPLAIN (COSTS OFF) SELECT * FROM message WHERE id = 7;
EXPLAIN (COSTS OFF) SELECT * FROM message ORDER BY id DESC LIMIT 5;
SET plan_cache_mode = force_generic_plan;
PREPARE by_key(bigint) AS SELECT id FROM message WHERE id = $1;
PREPARE latest AS SELECT id FROM message ORDER BY id DESC LIMIT 3;
EXECUTE by_key(7);
EXECUTE latest;
SET kalam.user_id = 'user 2';
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE by_key(7);
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE latest;
RESET plan_cache_mode;
-- An operator of one's own learns nothing from the planner.
CREATE FUNCTION leak(text, text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0001 AS
    $$ BEGIN RAISE NOTICE 'saw %', $1; RETURN true; END $$;
CREATE OPERATOR <<< (FUNCTION = leak, LEFTARG = text, RIGHTARG = text, RESTRICT = scalarltsel);
EXPLAIN (COSTS OFF) SELECT * FROM message WHERE note <<< 'x';

-- What is asked for single columns holds; a second ANALYZE replaces the first.
ALTER TABLE message ALTER COLUMN kind SET (n_distinct = 77), ALTER COLUMN note SET STATISTICS 0;
DELETE FROM message WHERE id > 500;
SET row_security = off;
ANALYZE message;
SELECT attname, n_distinct FROM pg_stats WHERE schemaname = 'user_statistics' AND tablename = 'message' AND attname IN ('kind', 'id') ORDER BY 1;
SELECT reltuples FROM pg_class WHERE oid = 'message'::regclass;
ALTER TABLE message DROP COLUMN kind;
ANALYZE message;
SELECT * FROM known('message');
BEGIN;
ANALYZE message;
ANALYZE message (id);
ROLLBACK;
VACUUM ANALYZE message;
SELECT * FROM known('message');

-- A tree of user tables, whose parent has rows too.
CREATE TABLE parent (id int, body text) USING kalam_user;
CREATE TABLE child () INHERITS (parent) USING kalam_user;
INSERT INTO parent (id, body, _user_id) SELECT i, 'parent', 'ann' FROM generate_series(1, 100) i;
INSERT INTO child (id, body, _user_id) SELECT i, 'child', 'bob' FROM generate_series(1, 100) i;
ANALYZE parent;
SELECT * FROM known('parent');
SELECT * FROM known('child');
ANALYZE child;
SELECT * FROM known('child');
CREATE TABLE whole (id int, body text, _user_id text COLLATE "C" NOT NULL DEFAULT kalam.user_id()) PARTITION BY RANGE (id);
CREATE TABLE part PARTITION OF whole FOR VALUES FROM (1) TO (1000) USING kalam_user;
INSERT INTO whole SELECT i, 'part', 'ann' FROM generate_series(1, 100) i;
ANALYZE whole;
SELECT * FROM known('whole');
SELECT * FROM known('part');

-- Streams too.
CREATE TABLE event (id int, body text) USING kalam_stream WITH (kalam.ttl = '1 day');
INSERT INTO event (id, body, _user_id) SELECT i, 'event', 'ann' FROM generate_series(1, 100) i;
ANALYZE event;
SELECT * FROM known('event');
RESET row_security;

-- Statistics over several columns would keep values.
CREATE STATISTICS refused ON id, note FROM message;
CREATE STATISTICS refused (mcv) ON id, body FROM whole;
RESET kalam.user_id;
SET client_min_messages = warning;
DROP SCHEMA user_statistics CASCADE;
