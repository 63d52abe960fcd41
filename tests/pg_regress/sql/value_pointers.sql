-- A pointer to a large value that a function holds over TRUNCATE or a rewrite leads nowhere, never to another value.
SELECT current_setting('default_table_access_method') = 'heap' AS on_heap \gset
\if :on_heap
\quit
\endif
CREATE SCHEMA value_pointers;
SET search_path = value_pointers, public;
-- What becomes of the value of row 5 that a function holds while it does something else.
CREATE FUNCTION hold(relation regclass, command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    held text;
BEGIN
    EXECUTE format('SELECT body FROM %s WHERE id = 5', relation) INTO held;
    EXECUTE command;
    RETURN left(held, 1) || length(held);
EXCEPTION WHEN internal_error OR data_corrupted OR undefined_object THEN
    RETURN 'error';
END $$;
CREATE FUNCTION fill(relation regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ALTER body SET STORAGE EXTERNAL', relation);
    EXECUTE format('INSERT INTO %s SELECT i, repeat(chr(64 + i), 20000) FROM generate_series(1, 9) i', relation);
END $$;
CREATE TABLE t (id int PRIMARY KEY, body text);
SELECT fill('t');
SELECT hold('t', 'SELECT 1');
SELECT hold('t', 'DELETE FROM t WHERE id = 1; CLUSTER t USING t_pkey');
SELECT hold('t', 'DELETE FROM t WHERE id = 2; ALTER TABLE t ALTER id TYPE bigint');
SELECT hold('t', 'DELETE FROM t WHERE id = 3; ALTER TABLE t SET ACCESS METHOD heap; ALTER TABLE t SET ACCESS METHOD kalam_shared');
SELECT hold('t', $$TRUNCATE t; INSERT INTO t SELECT i, repeat('x', 20000) FROM generate_series(1, 9) i$$);
SELECT count(*), count(DISTINCT body), min(length(body)) FROM t;
-- What was stored in vain is not found either, whatever is stored later.
CREATE FUNCTION take_back(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    held text;
BEGIN
    BEGIN
        EXECUTE command;
        INSERT INTO t VALUES (20, repeat('y', 20000));
        SELECT body INTO held FROM t WHERE id = 20;
        RAISE division_by_zero;
    EXCEPTION WHEN division_by_zero THEN
        NULL;
    END;
    INSERT INTO t SELECT i, repeat('z', 20000) FROM generate_series(30, 60) i;
    DELETE FROM t WHERE id >= 30;
    RETURN left(held, 1) || length(held);
EXCEPTION WHEN internal_error OR data_corrupted OR undefined_object THEN
    RETURN 'error';
END $$;
SELECT take_back('SELECT 1');
SELECT take_back('TRUNCATE t');
SELECT take_back('CLUSTER t USING t_pkey');
SELECT take_back('TRUNCATE t; CLUSTER t USING t_pkey');
SELECT take_back('ALTER TABLE t SET ACCESS METHOD heap; ALTER TABLE t SET ACCESS METHOD kalam_shared');
SELECT count(*), count(DISTINCT body), min(length(body)) FROM t;
-- A table's owner does not get at the values of others.
CREATE ROLE regress_value_owner;
CREATE ROLE regress_value_other;
GRANT USAGE, CREATE ON SCHEMA value_pointers TO regress_value_owner, regress_value_other;
SET ROLE regress_value_owner;
CREATE TABLE u (id int PRIMARY KEY, body text) USING kalam_user;
GRANT ALL ON u TO regress_value_other;
SELECT fill('u');
SET ROLE regress_value_other;
INSERT INTO u SELECT i, repeat('!', 20000) FROM generate_series(1, 9) i;
SET ROLE regress_value_owner;
SELECT hold('u', 'DELETE FROM u WHERE id = 1; ALTER TABLE u ALTER id TYPE bigint');
SELECT hold('u', 'DELETE FROM u WHERE id = 2; CLUSTER u USING u_pkey');
SELECT hold('u', 'DELETE FROM u WHERE id = 3; ALTER TABLE u ALTER id TYPE int');
SELECT count(*), count(DISTINCT body), min(length(body)) FROM u;
SET ROLE regress_value_other;
SELECT count(*), count(DISTINCT body), min(length(body)) FROM u;
RESET ROLE;
DROP SCHEMA value_pointers CASCADE;
DROP ROLE regress_value_owner, regress_value_other;
