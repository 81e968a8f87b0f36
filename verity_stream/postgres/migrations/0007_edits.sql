-- An edit of the cursor alone is an edit, too. The cursor that it writes is kept; where only the time
-- was moved, the one that was there no longer fits and is dropped.
CREATE OR REPLACE FUNCTION verity_checkpoint_edited() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version = OLD.version AND (
        NEW.last_ts IS DISTINCT FROM OLD.last_ts OR NEW.cursor IS DISTINCT FROM OLD.cursor
    ) THEN
        NEW.version := OLD.version + 1;
        IF NEW.cursor IS NOT DISTINCT FROM OLD.cursor THEN
            NEW.cursor := NULL;
        END IF;
        NEW.complete_through := NULL;
        NEW.seen := NULL;
        NEW.updated_at := now();
        INSERT INTO connector_audit (connector_id, action, before, after)
        VALUES (NEW.connector_id, 'edit',
                jsonb_build_object('last_ts', OLD.last_ts, 'cursor', OLD.cursor, 'version', OLD.version),
                jsonb_build_object('last_ts', NEW.last_ts, 'cursor', NEW.cursor, 'version', NEW.version));
    END IF;
    RETURN NEW;
END $$;
