-- The specification's SELECT and upsert on (connector_id, last_ts) work on this table unchanged.
-- A connector that ran on its own before may have made the table with these two columns only.
CREATE TABLE IF NOT EXISTS connector_checkpoints (
    connector_id text        PRIMARY KEY,
    last_ts      timestamptz NOT NULL
);

ALTER TABLE connector_checkpoints
    ADD COLUMN IF NOT EXISTS cursor           jsonb,
    ADD COLUMN IF NOT EXISTS complete_through timestamptz,
    ADD COLUMN IF NOT EXISTS seen             jsonb,
    ADD COLUMN IF NOT EXISTS version          bigint      NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS epoch            bigint      NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS updated_at       timestamptz NOT NULL DEFAULT now();

COMMENT ON COLUMN connector_checkpoints.version IS 'One more with every page and every edit.';
COMMENT ON COLUMN connector_checkpoints.epoch IS 'One more with every start of a relay: a lower one is fenced.';
COMMENT ON COLUMN connector_checkpoints.seen IS 'Where in the raw topics the ids to remember begin.';

CREATE TABLE connector_audit (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at           timestamptz NOT NULL DEFAULT now(),
    who          text        NOT NULL DEFAULT session_user,
    connector_id text        NOT NULL,
    action       text        NOT NULL,
    reason       text,
    before       jsonb,
    after        jsonb
);

CREATE INDEX connector_audit_by_connector ON connector_audit (connector_id, id);

-- A relay always raises the version with the position. Whoever moves the position without doing
-- so is an operator, or the SDK's own run(): that is an edit, which takes the next version, drops
-- the cursor that no longer fits and forgets the ids, because replaying is what was asked for.
CREATE FUNCTION verity_checkpoint_edited() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version = OLD.version AND NEW.last_ts IS DISTINCT FROM OLD.last_ts THEN
        NEW.version := OLD.version + 1;
        NEW.cursor := NULL;
        NEW.complete_through := NULL;
        NEW.seen := NULL;
        NEW.updated_at := now();
        INSERT INTO connector_audit (connector_id, action, before, after)
        VALUES (NEW.connector_id, 'edit',
                jsonb_build_object('last_ts', OLD.last_ts, 'cursor', OLD.cursor, 'version', OLD.version),
                jsonb_build_object('last_ts', NEW.last_ts, 'version', NEW.version));
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER verity_checkpoint_edited BEFORE UPDATE ON connector_checkpoints
    FOR EACH ROW EXECUTE FUNCTION verity_checkpoint_edited();
