"""`verity rewind` and `verity restart`."""

from __future__ import annotations

import json
from typing import Any

import click

from verity_sdk.errors import Malformed, Misconfigured
from verity_sdk.times import parse_utc
from verity_stream.cli.operate import (
    _echo_json,
    _require_known,
    _run,
    _settings,
    _specs,
    _who,
    connector_argument,
    json_option,
)
from verity_stream.kafka.committed import CommittedReader
from verity_stream.postgres.controls import Controls, position_body
from verity_stream.records import Checkpoint
from verity_stream.relay.start import rewound


class Time(click.ParamType):
    """A time as RFC 3339 has it, UTC where no offset is said."""

    name = "time"

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """Aware UTC."""
        if not isinstance(value, str):
            return value
        try:
            return parse_utc(value)
        except Malformed as error:
            self.fail(str(error), parameter, context)


class JsonObject(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(self, value: Any, parameter: Any, context: Any) -> Any:
        """A dict."""
        if not isinstance(value, str):
            return value
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"not JSON: {error}", parameter, context)
        if not isinstance(found, dict):
            self.fail("not a JSON object", parameter, context)
        return found


@click.command()
@connector_argument
@click.option("--reason", help="Why; kept in connector_audit.")
def restart(connector_id: str, reason: str | None) -> None:
    """Stop CONNECTOR and start it again, now, however long it was to wait.

    Its worker sees it within 2 seconds and finishes the page in hand. The connector is
    constructed again; settings and secrets stay those that the worker was started with.
    """
    settings = _settings()
    _require_known(connector_id, _specs(settings))
    _run(
        settings,
        lambda pool: Controls(pool).request_restart(connector_id, who=_who(), reason=reason),
    )
    click.echo(f"{connector_id}: a restart is asked for.")


@click.command()
@connector_argument
@click.option("--to", type=Time(), help="Go on from this time; its cursor is cleared.")
@click.option(
    "--cursor", type=JsonObject(), help="Go back to where it had this cursor, a JSON object."
)
@click.option("--reason", required=True, help="Why; kept in connector_audit.")
@click.option("--yes", "is_agreed", is_flag=True, help="Do not ask.")
@json_option
def rewind(
    connector_id: str, to: Any, cursor: Any, reason: str, is_agreed: bool, as_json: bool
) -> None:
    """Move CONNECTOR back, to publish again what came after. Only while it is paused.

    Event ids that were published are forgotten: consumers see those events a second time, which
    is what is asked for. Forward is refused, for what lies between would never be fetched. Nobody
    but the connector can compare cursors, so one is taken only if the connector stood there since
    its position was last edited, as far as the checkpoints topic still knows; then the watermark
    goes back along with it.
    """
    settings = _settings()
    _require_known(connector_id, _specs(settings))
    if to is None and cursor is None:
        raise Misconfigured("a rewind needs --to, --cursor, or both")

    async def plan(pool: Any) -> tuple[Checkpoint, Checkpoint]:
        store = Controls(pool)
        stored = await store.stored(connector_id)
        reader = CommittedReader(
            settings.kafka, settings.checkpoint_partitions, settings.transaction_timeout
        )
        history = await reader.history(connector_id)
        edited_version = await store.edited_version(connector_id)
        return stored, rewound(stored, history, to=to, cursor=cursor, edited_version=edited_version)

    stored, after = _run(settings, plan)
    bodies = {"before": position_body(stored), "after": position_body(after)}
    if not is_agreed:
        for name, body in bodies.items():
            click.echo(f"{name}: {json.dumps(body)}", err=True)
        click.confirm(
            f"Publish again what {connector_id} published in between?", abort=True, err=True
        )
    _run(
        settings,
        lambda pool: Controls(pool).rewind(stored, after, who=_who(), reason=reason),
    )
    if as_json:
        _echo_json([{"connector_id": connector_id, **bodies}])
    else:
        click.echo(f"{connector_id}: rewound; verity resume {connector_id} lets it go on.")
