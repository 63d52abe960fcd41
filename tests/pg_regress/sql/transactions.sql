-- Transactions and savepoints: what remains of which change.
CREATE SCHEMA transactions;
SET search_path = transactions, public;

CREATE TABLE ledger (id int PRIMARY KEY, amount int);
CREATE INDEX ledger_amount ON ledger (amount);
INSERT INTO ledger SELECT i, 100 FROM generate_series(1, 5) i;

-- Commit and rollback of every kind of change.
BEGIN;
INSERT INTO ledger VALUES (6, 600);
UPDATE ledger SET amount = amount + 1 WHERE id <= 2;
DELETE FROM ledger WHERE id = 5;
SELECT * FROM ledger ORDER BY id;
ROLLBACK;
SELECT * FROM ledger ORDER BY id;
BEGIN;
INSERT INTO ledger VALUES (6, 600);
UPDATE ledger SET amount = amount + 1 WHERE id <= 2;
DELETE FROM ledger WHERE id = 5;
COMMIT;
SELECT * FROM ledger ORDER BY id;

-- An error ends the transaction.
BEGIN;
INSERT INTO ledger VALUES (7, 700);
\set VERBOSITY sqlstate
INSERT INTO ledger VALUES (1, 0);
SELECT * FROM ledger;
\set VERBOSITY default
COMMIT;
SELECT count(*) FROM ledger WHERE id = 7;

-- Savepoints: inner rolled back, outer kept, and the reverse.
BEGIN;
INSERT INTO ledger VALUES (10, 1);
SAVEPOINT a;
INSERT INTO ledger VALUES (11, 2);
UPDATE ledger SET amount = 5 WHERE id = 10;
SAVEPOINT b;
DELETE FROM ledger WHERE id = 10;
INSERT INTO ledger VALUES (12, 3);
SELECT * FROM ledger WHERE id >= 10 ORDER BY id;
ROLLBACK TO b;
SELECT * FROM ledger WHERE id >= 10 ORDER BY id;
UPDATE ledger SET amount = 6 WHERE id = 10;
RELEASE a;
SELECT * FROM ledger WHERE id >= 10 ORDER BY id;
COMMIT;
SELECT * FROM ledger WHERE id >= 10 ORDER BY id;
BEGIN;
SAVEPOINT a;
UPDATE ledger SET amount = amount + 1000;
SAVEPOINT b;
UPDATE ledger SET amount = amount + 1000;
RELEASE b;
ROLLBACK TO a;
UPDATE ledger SET amount = amount + 1 WHERE id = 10;
COMMIT;
SELECT * FROM ledger ORDER BY id;

-- The same savepoint name again and again; one row changed on every level.
BEGIN;
SAVEPOINT s;
UPDATE ledger SET amount = 1 WHERE id = 10;
SAVEPOINT s;
UPDATE ledger SET amount = 2 WHERE id = 10;
SAVEPOINT s;
UPDATE ledger SET amount = 3 WHERE id = 10;
ROLLBACK TO s;
SELECT amount FROM ledger WHERE id = 10;
RELEASE s;
ROLLBACK TO s;
SELECT amount FROM ledger WHERE id = 10;
UPDATE ledger SET amount = 4 WHERE id = 10;
RELEASE s;
SELECT amount FROM ledger WHERE id = 10;
COMMIT;
SELECT amount FROM ledger WHERE id = 10;

-- A row is deleted in a subtransaction that is undone, then changed.
BEGIN;
SAVEPOINT s;
DELETE FROM ledger WHERE id = 11;
ROLLBACK TO s;
UPDATE ledger SET amount = amount * 2 WHERE id = 11;
SAVEPOINT t;
DELETE FROM ledger WHERE id = 11;
RELEASE t;
SELECT count(*) FROM ledger WHERE id = 11;
ROLLBACK;
SELECT amount FROM ledger WHERE id = 11;

-- A row that was inserted on one level and changed on others.
BEGIN;
SAVEPOINT a;
INSERT INTO ledger VALUES (20, 1);
SAVEPOINT b;
UPDATE ledger SET amount = 2 WHERE id = 20;
SAVEPOINT c;
UPDATE ledger SET id = 21 WHERE id = 20;
ROLLBACK TO b;
SELECT * FROM ledger WHERE id IN (20, 21);
INSERT INTO ledger VALUES (21, 7);
ROLLBACK TO a;
SELECT * FROM ledger WHERE id IN (20, 21);
INSERT INTO ledger VALUES (20, 9);
COMMIT;
SELECT * FROM ledger WHERE id IN (20, 21);

-- Five hundred subtransactions in one transaction, every third undone: more
-- than a snapshot lists.
CREATE TABLE steps (i int PRIMARY KEY, level int);
BEGIN;
DO $$
BEGIN
    FOR n IN 1..500 LOOP
        BEGIN
            INSERT INTO steps VALUES (n, 1);
            IF n % 3 = 0 THEN
                RAISE EXCEPTION 'undo';
            END IF;
        EXCEPTION WHEN raise_exception THEN
            NULL;
        END;
    END LOOP;
END $$;
SELECT count(*), sum(i) FROM steps;
COMMIT;
SELECT count(*), sum(i) FROM steps;

-- A hundred nested ones.
CREATE FUNCTION descend(step int, depth int, fails_at int) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO transactions.steps VALUES (1000 * depth + step, step);
    IF step = fails_at THEN
        RAISE EXCEPTION 'deep enough';
    END IF;
    BEGIN
        IF step < depth THEN
            PERFORM transactions.descend(step + 1, depth, fails_at);
        END IF;
    EXCEPTION WHEN raise_exception THEN
        IF step > fails_at / 2 THEN
            RAISE;
        END IF;
    END;
    UPDATE transactions.steps SET level = -level WHERE i = 1000 * depth + 1;
END $$;
SELECT descend(1, 100, 0);
SELECT count(*), sum(i) FROM steps WHERE i > 100000;
SELECT level FROM steps WHERE i = 100001;
SELECT descend(1, 90, 80);
SELECT count(*), min(i), max(i) FROM steps WHERE i BETWEEN 90000 AND 90100;
SELECT level FROM steps WHERE i = 90001;
SELECT check_indexes('steps');

-- PL/pgSQL: exception blocks around constraint errors, and the retry idiom.
CREATE TABLE tally (word text PRIMARY KEY, n int);
CREATE FUNCTION add_word(w text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        UPDATE transactions.tally SET n = n + 1 WHERE word = w;
        EXIT WHEN found;
        BEGIN
            INSERT INTO transactions.tally VALUES (w, 1);
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            RAISE NOTICE 'again';
        END;
    END LOOP;
END $$;
SELECT add_word('w' || i % 3) FROM generate_series(1, 10) i;
SELECT * FROM tally ORDER BY word;
DO $$
DECLARE
    states text[] := '{}';
    attempt text;
BEGIN
    FOREACH attempt IN ARRAY ARRAY[
        'INSERT INTO tally VALUES (''w1'', 0)',
        'INSERT INTO tally VALUES (NULL, 0)',
        'INSERT INTO tally VALUES (''z'', 1 / 0)',
        'UPDATE tally SET word = ''w2'' WHERE word = ''w1''',
        'UPDATE tally SET n = n / 0',
        'DELETE FROM tally WHERE n / 0 = 1',
        'INSERT INTO tally SELECT ''x'' || i, 1 / (50 - i) FROM generate_series(1, 100) i',
        'INSERT INTO no_such_table VALUES (1)'
    ] LOOP
        states := states || outcome(attempt);
    END LOOP;
    RAISE NOTICE '%', states;
END $$;
SELECT * FROM tally ORDER BY word;

-- COMMIT and ROLLBACK within a procedure that holds a loop over the table.
CREATE PROCEDURE batch() LANGUAGE plpgsql AS $$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT i FROM steps WHERE i <= 30 ORDER BY i LOOP
        UPDATE steps SET level = 77 WHERE i = r.i;
        IF r.i % 2 = 0 THEN
            COMMIT;
        ELSE
            ROLLBACK;
        END IF;
    END LOOP;
END $$;
CALL batch();
SELECT i FROM steps WHERE level = 77 ORDER BY i;

-- Read-only transactions and COMMIT AND CHAIN.
\set VERBOSITY sqlstate
BEGIN READ ONLY;
INSERT INTO tally VALUES ('no', 0);
ROLLBACK;
BEGIN READ ONLY;
UPDATE tally SET n = 0;
ROLLBACK;
\set VERBOSITY default
BEGIN ISOLATION LEVEL REPEATABLE READ;
INSERT INTO tally VALUES ('chain', 0);
COMMIT AND CHAIN;
SHOW transaction_isolation;
UPDATE tally SET n = 1 WHERE word = 'chain';
ROLLBACK AND CHAIN;
SELECT n FROM tally WHERE word = 'chain';
COMMIT;

-- Isolation levels in a single session.
BEGIN ISOLATION LEVEL SERIALIZABLE;
UPDATE tally SET n = n + 1;
SELECT sum(n) FROM tally;
DELETE FROM tally WHERE word = 'chain';
COMMIT;
SELECT sum(n), count(*) FROM tally;
