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
