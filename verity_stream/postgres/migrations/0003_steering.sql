-- A worker that sees another time here than at its last look starts the connector anew.
ALTER TABLE connector_controls ADD COLUMN restart_requested_at timestamptz;

-- Seconds below which half, and all but a hundredth, of the events were late.
ALTER TABLE connector_status
    ADD COLUMN lateness_p50_seconds double precision,
    ADD COLUMN lateness_p99_seconds double precision;

-- The last errors of every connector: a status only has the present one.
CREATE TABLE connector_errors (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    connector_id text        NOT NULL,
    worker       text        NOT NULL,
    state        text        NOT NULL,
    error        text        NOT NULL,
    first_at     timestamptz NOT NULL DEFAULT now(),
    last_at      timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX connector_errors_by_connector ON connector_errors (connector_id, id);

-- The same error again makes its row younger; 20 different ones are kept.
CREATE FUNCTION verity_error_reported() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last connector_errors%ROWTYPE;
BEGIN
    SELECT * INTO last FROM connector_errors
    WHERE connector_id = NEW.connector_id ORDER BY id DESC LIMIT 1;
    IF last.error = NEW.last_error AND last.state = NEW.state THEN
        UPDATE connector_errors SET last_at = now(), worker = NEW.worker WHERE id = last.id;
    ELSE
        INSERT INTO connector_errors (connector_id, worker, state, error)
        VALUES (NEW.connector_id, NEW.worker, NEW.state, NEW.last_error);
        DELETE FROM connector_errors
        WHERE connector_id = NEW.connector_id AND id <= (
            SELECT id FROM connector_errors WHERE connector_id = NEW.connector_id
            ORDER BY id DESC OFFSET 20 LIMIT 1);
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER verity_error_reported AFTER INSERT OR UPDATE ON connector_status
    FOR EACH ROW WHEN (NEW.last_error IS NOT NULL AND NEW.state IN ('backing_off', 'blocked'))
    EXECUTE FUNCTION verity_error_reported();
