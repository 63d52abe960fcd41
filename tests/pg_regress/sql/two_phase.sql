-- Prepared transactions: their rows and locks stay until they are decided.
-- A server that does not allow them has nothing to show: see two_phase_1.out.
SELECT current_setting('max_prepared_transactions')::int < 2 AS not_allowed \gset
\if :not_allowed
\quit
\endif
CREATE SCHEMA two_phase;
SET search_path = two_phase, public;

CREATE TABLE account (id int PRIMARY KEY, amount int);
INSERT INTO account VALUES (1, 100), (2, 200), (3, 300);
BEGIN;
UPDATE account SET amount = amount - 50 WHERE id = 1;
SAVEPOINT s;
INSERT INTO account VALUES (4, 400);
DELETE FROM account WHERE id = 3;
ROLLBACK TO s;
INSERT INTO account VALUES (5, 500);
SELECT id FROM account WHERE id = 2 FOR UPDATE;
PREPARE TRANSACTION 'kalam_one';
SELECT * FROM account ORDER BY id;
SET lock_timeout = '50ms';
\set VERBOSITY sqlstate
UPDATE account SET amount = 0 WHERE id = 1;
SELECT id FROM account WHERE id = 2 FOR UPDATE NOWAIT;
INSERT INTO account VALUES (5, 0);
TRUNCATE account;
\set VERBOSITY default
SELECT id FROM account WHERE id = 2 FOR UPDATE SKIP LOCKED;
UPDATE account SET amount = 301 WHERE id = 3;
INSERT INTO account VALUES (4, 401);
COMMIT PREPARED 'kalam_one';
SELECT * FROM account ORDER BY id;
SELECT check_indexes('account');

BEGIN;
UPDATE account SET amount = -1;
DELETE FROM account WHERE id = 5;
INSERT INTO account VALUES (6, 600);
PREPARE TRANSACTION 'kalam_two';
SELECT * FROM account ORDER BY id;
ROLLBACK PREPARED 'kalam_two';
SELECT * FROM account ORDER BY id;
UPDATE account SET amount = amount + 1;
SELECT sum(amount) FROM account;

-- A table that comes, goes or is emptied in the prepared transaction.
BEGIN;
CREATE TABLE born (i int PRIMARY KEY);
INSERT INTO born SELECT generate_series(1, 100);
PREPARE TRANSACTION 'kalam_three';
SELECT to_regclass('born') IS NULL AS hidden;
COMMIT PREPARED 'kalam_three';
SELECT count(*), sum(i) FROM born;
BEGIN;
TRUNCATE born;
INSERT INTO born VALUES (7);
PREPARE TRANSACTION 'kalam_four';
ROLLBACK PREPARED 'kalam_four';
SELECT count(*), sum(i) FROM born;
BEGIN;
DROP TABLE born;
PREPARE TRANSACTION 'kalam_five';
COMMIT PREPARED 'kalam_five';
SELECT to_regclass('born') IS NULL AS gone;
BEGIN;
CREATE TABLE unborn (i int);
INSERT INTO unborn VALUES (1);
PREPARE TRANSACTION 'kalam_six';
ROLLBACK PREPARED 'kalam_six';
SELECT to_regclass('unborn') IS NULL AS gone;
SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'kalam%';
