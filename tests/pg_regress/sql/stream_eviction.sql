-- Evictions look at the blocks whose rows have expired, and not at the others.
CREATE SCHEMA stream_eviction;
SET search_path = stream_eviction, public;
CREATE FUNCTION evict(regclass, OUT rows bigint, OUT looked_at bigint, OUT blocks bigint)
    RETURNS SETOF record LANGUAGE c STRICT AS '$libdir/kalamdb', 'evict_inline_wrapper';
CREATE TABLE events (id int PRIMARY KEY, body text) USING kalam_stream WITH (kalam.ttl = '1 hour', autovacuum_enabled = off);
SET kalam.user_id = 'early';
INSERT INTO events SELECT i, repeat('x', 500) FROM generate_series(1, 400) i;
CREATE TABLE moments AS SELECT clock_timestamp() AS early;

-- A new block is looked at once.
SELECT rows FROM evict('events');
SELECT rows, looked_at, blocks > 6 AS several FROM evict('events');

-- Rows that are two seconds younger and more.
DO $$
BEGIN
    WHILE clock_timestamp() < (SELECT early + interval '4 s' FROM stream_eviction.moments) LOOP
    END LOOP;
END $$;
SET kalam.user_id = 'late';
INSERT INTO events SELECT i, repeat('y', 500) FROM generate_series(1, 400) i;
SELECT rows FROM evict('events');
SELECT rows, looked_at FROM evict('events');

-- The early ones expire: only their blocks are looked at. A job cannot come between, as the table is locked.
CREATE FUNCTION expire_early(OUT rows bigint, OUT others boolean, OUT all_of_them boolean) LANGUAGE plpgsql AS $$
DECLARE
    result record;
    lifetime interval;
BEGIN
    SELECT clock_timestamp() - early - interval '1 s' INTO lifetime FROM moments;
    EXECUTE format('ALTER TABLE events SET (kalam.ttl = %L)', floor(extract(epoch FROM lifetime) * 1000) || ' ms');
    SELECT * INTO result FROM evict('events');
    EXECUTE 'ALTER TABLE events SET (kalam.ttl = ''1 hour'')';
    rows := result.rows;
    others := result.looked_at > (SELECT t.blocks FROM kalam.table_users('events') t WHERE t.user_id = 'early');
    all_of_them := result.looked_at = (SELECT t.blocks FROM kalam.table_users('events') t WHERE t.user_id = 'early');
END $$;
CALL wait_for_old_snapshots();
SELECT * FROM expire_early();
SELECT rows, looked_at FROM evict('events');
SELECT count(*), min(body) = repeat('y', 500) AS late FROM events;
SET kalam.user_id = 'early';
SELECT count(*) FROM events;

-- Room that was given back is used, and its rows expire too; VACUUM looks at everything.
SELECT blocks AS before FROM evict('events') \gset
INSERT INTO events SELECT i, repeat('z', 500) FROM generate_series(1, 400) i;
SELECT blocks = :before AS reused FROM evict('events');
SET row_security = off;
SELECT count(*) FROM events;
ALTER TABLE events SET (kalam.ttl = '1 ms');
DO $$
DECLARE
    found boolean := true;
BEGIN
    WHILE found LOOP
        COMMIT;
        SELECT EXISTS (SELECT FROM stream_eviction.events) INTO found;
    END LOOP;
END $$;
CALL wait_for_old_snapshots();
VACUUM events;
ALTER TABLE events SET (kalam.ttl = '1 hour');
SELECT pg_sleep(1);
SELECT rows FROM evict('events');
SELECT rows, looked_at FROM evict('events');
SELECT count(*) FROM events;
SET client_min_messages = warning;
DROP SCHEMA stream_eviction CASCADE;
