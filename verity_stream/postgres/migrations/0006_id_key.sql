-- The key of the hashes in the log of ids, made once; the log itself has it, too, and wins.
CREATE TABLE verity_id_key (
    only_row boolean     PRIMARY KEY DEFAULT true CHECK (only_row),
    key      bytea       NOT NULL CHECK (octet_length(key) = 16),
    made_at  timestamptz NOT NULL DEFAULT now()
);

COMMENT ON TABLE verity_id_key IS 'A secret: whoever has it can make two ids look the same.';
COMMENT ON COLUMN connector_checkpoints.seen IS 'Which slots of the log of ids hold the ids to remember.';
