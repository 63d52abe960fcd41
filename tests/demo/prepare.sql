-- The table of the messages to load, and after loading it the keys that the measured statements use.
CREATE UNLOGGED TABLE history (conversation_id text, seq int, sent_at timestamptz, role text, content text, metadata jsonb) USING heap;
