-- UPDATE and DELETE with all their clauses.
CREATE SCHEMA update_delete;
SET search_path = update_delete, public;

CREATE TABLE stock (id int PRIMARY KEY, name text DEFAULT 'unnamed', amount int, price numeric);
INSERT INTO stock SELECT i, 'item ' || i, i * 10, i * 1.25 FROM generate_series(1, 10) i;
UPDATE stock SET amount = 0 WHERE id = 1;
UPDATE stock SET (name, price) = ('renamed', price * 2), amount = DEFAULT WHERE id = 2;
UPDATE stock SET name = DEFAULT, (amount, price) = (SELECT count(*), max(price) FROM stock) WHERE id = 3;
UPDATE stock AS s SET amount = s.amount + v.n FROM (VALUES (4, 100), (5, 200), (6, 300)) v (id, n) WHERE s.id = v.id;
DELETE FROM stock WHERE id = 7;
DELETE FROM stock AS s USING generate_series(8, 9) g WHERE s.id = g;
SELECT * FROM stock ORDER BY id;

-- What is returned: the new row of an update, the old one of a delete.
UPDATE stock SET amount = amount + 1 WHERE id = 4 RETURNING *, amount - 1 AS before, tableoid::regclass;
DELETE FROM stock WHERE id = 10 RETURNING id, name, price;
UPDATE stock SET amount = -1 WHERE id = 999 RETURNING *;
WITH u AS (UPDATE stock SET amount = amount * 2 WHERE id IN (5, 6) RETURNING id, amount),
     d AS (DELETE FROM stock WHERE id = 1 RETURNING id, amount)
SELECT 'updated' AS what, * FROM u UNION ALL SELECT 'deleted', * FROM d ORDER BY 1, 2;
SELECT * FROM stock ORDER BY id;

-- Updates from joins, outer joins and correlated subqueries; several matches change a row once.
CREATE TABLE delivery (stock_id int, amount int);
INSERT INTO delivery VALUES (4, 1), (4, 1), (4, 1), (5, 7), (99, 1);
UPDATE stock SET amount = stock.amount + delivery.amount FROM delivery WHERE delivery.stock_id = stock.id;
SELECT id, amount FROM stock ORDER BY id;
UPDATE stock SET amount = coalesce((SELECT sum(amount) FROM delivery WHERE stock_id = stock.id), -1);
SELECT id, amount FROM stock ORDER BY id;
DELETE FROM delivery WHERE NOT EXISTS (SELECT FROM stock WHERE id = stock_id) RETURNING *;
DELETE FROM delivery USING stock WHERE stock_id = id AND name LIKE 'item%' AND stock.amount = 7;
SELECT * FROM delivery ORDER BY 1, 2;

-- Constraints on the new row; an error leaves everything as it was.
ALTER TABLE stock ADD CHECK (amount < 1000), ALTER name SET NOT NULL;
\set VERBOSITY sqlstate
UPDATE stock SET amount = id * 200;
UPDATE stock SET name = NULL WHERE id = 5;
UPDATE stock SET amount = 1 / (id - 6);
UPDATE stock SET id = 5;
DELETE FROM stock WHERE 1 / (id - 6) < 0;
\set VERBOSITY default
SELECT id, amount FROM stock ORDER BY id;

-- All rows of a table that spans many pages, all back by rollback, and all gone.
CREATE TABLE many (id int PRIMARY KEY, n int, filler text);
INSERT INTO many SELECT i, i, noise(i, 50) FROM generate_series(1, 5000) i;
UPDATE many SET n = n + 1;
UPDATE many SET n = n + 1 WHERE id % 2 = 0;
SELECT count(*), sum(n), sum(id) FROM many;
BEGIN;
UPDATE many SET n = 0, filler = filler || 'x';
DELETE FROM many WHERE id > 2500;
SELECT count(*), sum(n), sum(length(filler)) FROM many;
ROLLBACK;
SELECT count(*), sum(n), sum(length(filler)) FROM many;
UPDATE many SET filler = repeat(filler, 4) WHERE id % 3 = 0;
UPDATE many SET filler = left(filler, 5) WHERE id % 3 = 1;
SELECT count(*), sum(n), sum(length(filler)) FROM many;
DELETE FROM many WHERE id % 5 <> 0;
SELECT count(*), sum(n), sum(length(filler)) FROM many;
SELECT check_indexes('many');
DELETE FROM many;
SELECT count(*) FROM many;
INSERT INTO many SELECT i, i, '' FROM generate_series(1, 100) i;
SELECT count(*), sum(n) FROM many;

-- Rows inserted by the same transaction.
BEGIN;
INSERT INTO many VALUES (101, 0, '');
UPDATE many SET n = 1 WHERE id = 101;
UPDATE many SET n = 2 WHERE id = 101;
SELECT n FROM many WHERE id = 101;
DELETE FROM many WHERE id = 101;
SELECT n FROM many WHERE id = 101;
INSERT INTO many VALUES (101, 3, '');
COMMIT;
SELECT n FROM many WHERE id = 101;

-- Update through every kind of scan.
CREATE INDEX ON many (n);
CALL only_scan('seqscan');
UPDATE many SET filler = filler || 's' WHERE n BETWEEN 1 AND 10;
CALL only_scan('indexscan');
UPDATE many SET filler = filler || 'i' WHERE n BETWEEN 1 AND 10;
CALL only_scan('bitmapscan');
UPDATE many SET filler = filler || 'b' WHERE n BETWEEN 1 AND 10;
CALL only_scan('tidscan');
UPDATE many SET filler = filler || 't' WHERE ctid = ANY (ARRAY(SELECT ctid FROM many WHERE n BETWEEN 1 AND 10));
CALL only_scan('any');
SELECT filler, count(*) FROM many GROUP BY filler ORDER BY filler;

-- Through a view.
CREATE VIEW few AS SELECT id, n FROM many WHERE n <= 5 WITH CHECK OPTION;
UPDATE few SET n = n - 1 WHERE id = 5;
DELETE FROM few WHERE id = 4;
INSERT INTO few VALUES (200, 5);
\set VERBOSITY sqlstate
UPDATE few SET n = 6;
\set VERBOSITY default
SELECT * FROM few ORDER BY id;
