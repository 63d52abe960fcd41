-- The keys that the measured statements use: every message once, in an order unrelated to its place.
CREATE TABLE keys USING heap AS
SELECT (row_number() OVER (ORDER BY hashtextextended(conversation_id || ':' || seq, 7)))::int AS n, conversation_id, seq FROM history;
CREATE UNIQUE INDEX ON keys (n);
VACUUM ANALYZE keys;
