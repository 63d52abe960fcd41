-- The table of the demo, as :name with access method :am.
CREATE TABLE :"name" (
    conversation_id text NOT NULL,
    seq int NOT NULL,
    sent_at timestamptz NOT NULL,
    role text NOT NULL,
    content text NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (conversation_id, seq)
) USING :"am";
