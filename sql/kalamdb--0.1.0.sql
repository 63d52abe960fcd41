-- KalamDB 0.1.0

\echo Use "CREATE EXTENSION kalamdb" to load this file. \quit

CREATE SCHEMA kalam;
COMMENT ON SCHEMA kalam IS 'KalamDB: functions and control tables';
GRANT USAGE ON SCHEMA kalam TO PUBLIC;

-- Table access method

CREATE FUNCTION kalam.shared_handler(internal) RETURNS table_am_handler
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'kalam_shared_handler';
COMMENT ON FUNCTION kalam.shared_handler(internal) IS 'table access method of shared tables';

CREATE ACCESS METHOD kalam_shared TYPE TABLE HANDLER kalam.shared_handler;
COMMENT ON ACCESS METHOD kalam_shared IS 'KalamDB table whose rows all users share';

-- Engine

CREATE FUNCTION kalam.checkpoint() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'engine_checkpoint_wrapper';
COMMENT ON FUNCTION kalam.checkpoint() IS 'wait until everything logged before the call is durable in the store';
REVOKE ALL ON FUNCTION kalam.checkpoint() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION kalam.checkpoint() TO pg_checkpoint;

CREATE FUNCTION kalam.stats(OUT name text, OUT value bigint, OUT unit text, OUT description text) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE ROWS 25 AS 'MODULE_PATHNAME', 'engine_stats_wrapper';
COMMENT ON FUNCTION kalam.stats() IS 'counters and positions of the engine';
REVOKE ALL ON FUNCTION kalam.stats() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION kalam.stats() TO pg_monitor;

CREATE FUNCTION kalam.table_stats(relation regclass, missing_ok boolean DEFAULT false,
        OUT storage bigint, OUT blocks bigint, OUT hot_bytes bigint, OUT index_bytes bigint, OUT cold_bytes bigint,
        OUT total_bytes bigint)
    RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE ROWS 1 AS 'MODULE_PATHNAME', 'table_stats_wrapper';
COMMENT ON FUNCTION kalam.table_stats(regclass, boolean) IS
    'storage, blocks of 32 KB and bytes on disk of a KalamDB table; bytes of rows as of the last checkpoint';

CREATE VIEW kalam.tables AS
    -- Materialized, so that no other relation reaches the function.
    WITH kalam AS MATERIALIZED (
        SELECT n.nspname, c.relname, a.amname, c.oid
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_catalog.pg_am a ON a.oid = c.relam
        WHERE a.amhandler = 'kalam.shared_handler(internal)'::pg_catalog.regprocedure AND c.relkind IN ('r', 'm')
    )
    SELECT k.nspname AS schemaname, k.relname AS tablename, k.amname AS access_method, s.blocks, s.hot_bytes, s.index_bytes
    FROM kalam k
    CROSS JOIN LATERAL kalam.table_stats(k.oid, missing_ok => true) s;
COMMENT ON VIEW kalam.tables IS 'KalamDB tables of the database and their sizes; without a size: the storage is missing';
GRANT SELECT ON kalam.tables TO PUBLIC;
