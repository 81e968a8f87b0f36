-- What a connector says is worth an operator's look, though nothing failed: a source that is silent.
ALTER TABLE connector_status ADD COLUMN warning text;
