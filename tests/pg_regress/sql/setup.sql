-- Helpers that the other tests share. Runs first and alone.
CREATE EXTENSION IF NOT EXISTS amcheck;

-- Does the plan of a query contain a node of this kind? Lets a test state that
-- it really exercised, say, an index scan without printing a plan.
CREATE FUNCTION plan_has(query text, node text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
        IF line LIKE '%' || node || '%' THEN
            RETURN true;
        END IF;
    END LOOP;
    RETURN false;
END $$;

-- Deterministic text that compression cannot shrink much.
CREATE FUNCTION noise(seed int, length int) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(left(string_agg(md5(seed || ':' || i), '' ORDER BY i), length), '')
    FROM generate_series(1, (length + 31) / 32) AS i
$$;

-- A fingerprint of a table's rows that does not depend on their order.
CREATE FUNCTION fingerprint(relation regclass, OUT rows bigint, OUT md5 text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('SELECT count(*), md5(coalesce(string_agg(md5(r::text), '''' ORDER BY md5(r::text) COLLATE "C"), '''')) FROM %s AS r', relation)
    INTO rows, md5;
END $$;

-- Every row has its entry in every btree index of the table and the indexes
-- are structurally sound. Raises an error otherwise; returns the number of
-- indexes that were checked.
CREATE FUNCTION check_indexes(relation regclass) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    index record;
    checked int := 0;
BEGIN
    FOR index IN
        SELECT i.indexrelid::regclass AS name
        FROM pg_index i
        JOIN pg_class c ON c.oid = i.indexrelid
        JOIN pg_am a ON a.oid = c.relam
        WHERE i.indrelid = relation AND a.amname = 'btree' AND i.indisvalid
        ORDER BY i.indexrelid
    LOOP
        PERFORM bt_index_parent_check(index.name, true, true);
        checked := checked + 1;
    END LOOP;
    RETURN checked;
END $$;

-- Waits until no other process has a snapshot that keeps VACUUM from removing what was deleted before the call: jobs and
-- autovacuum come at any time. Old transactions of other databases are counted: new snapshots here are as old.
CREATE PROCEDURE wait_for_old_snapshots()
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_current_xact_id();
    FOR i IN 1 .. 3000 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid <> pg_backend_pid()
            AND greatest(age(backend_xmin), age(backend_xid)) > 0);
        PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01);
    END LOOP;
END $$;

-- Flushes until all rows of a table are cold: a snapshot of autovacuum may keep some hot for a moment.
CREATE PROCEDURE flush(relation regclass) LANGUAGE plpgsql AS $$
DECLARE
    total bigint;
BEGIN
    EXECUTE format('SELECT count(*) FROM %s', relation) INTO total;
    PERFORM kalam.checkpoint();
    FOR attempt IN 1 .. 3000 LOOP
        PERFORM kalam.flush(relation, wait => true);
        COMMIT;
        IF total = (SELECT coalesce(sum(live_rows), 0) FROM kalam.table_segments(relation)) THEN RETURN; END IF;
        PERFORM pg_sleep(0.01);
        COMMIT;
    END LOOP;
    RAISE 'rows of % stay hot', relation;
END $$;

-- Runs a statement and says how it ended: 'ok' with the number of rows, or the
-- SQLSTATE of its error.
CREATE FUNCTION outcome(statement text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    touched bigint;
BEGIN
    EXECUTE statement;
    GET DIAGNOSTICS touched = ROW_COUNT;
    RETURN 'ok ' || touched;
EXCEPTION WHEN OTHERS THEN
    RETURN SQLSTATE;
END $$;

-- Sets or clears the planner settings so that only one kind of scan is left.
-- The costs that this gives a plan would make the server compile it.
CREATE PROCEDURE only_scan(kind text)
LANGUAGE plpgsql AS $$
DECLARE
    one text;
BEGIN
    IF kind NOT IN ('seqscan', 'indexscan', 'indexonlyscan', 'bitmapscan', 'tidscan', 'any') THEN
        RAISE EXCEPTION 'unknown kind of scan %', kind;
    END IF;
    SET jit = off;
    FOREACH one IN ARRAY ARRAY['seqscan', 'indexscan', 'indexonlyscan', 'bitmapscan', 'tidscan'] LOOP
        PERFORM set_config('enable_' || one,
            CASE WHEN kind IN (one, 'any')
                   OR (kind = 'indexonlyscan' AND one = 'indexscan') THEN 'on' ELSE 'off' END,
            false);
    END LOOP;
END $$;
