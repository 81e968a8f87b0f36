"""`verity pause`, `resume`, `restart`, `rewind`, `snapshot`: what is asked of a connector."""

from __future__ import annotations

import json
from typing import Any

import click

from verity_sdk.errors import Misconfigured
from verity_stream.cli.context import (
    JsonObject,
    Time,
    connector_argument,
    echo_json,
    json_option,
    read_settings,
    read_specs,
    require_known,
    run,
    who,
)
from verity_stream.kafka.committed import CommittedReader
from verity_stream.postgres.controls import Controls, position_body
from verity_stream.records import Checkpoint
from verity_stream.relay.start import rewound


@click.command()
@connector_argument
@click.option("--reason", required=True, help="Why; kept in connector_audit.")
def pause(connector_id: str, reason: str) -> None:
    """Stop CONNECTOR until it is resumed.

    Its worker sees it within 2 seconds and finishes the page in hand.
    """
    _set_paused(connector_id, is_paused=True, reason=reason)


@click.command()
@connector_argument
@click.option("--reason", help="Why; kept in connector_audit.")
def resume(connector_id: str, reason: str | None) -> None:
    """Let a paused CONNECTOR go on where it stopped."""
    _set_paused(connector_id, is_paused=False, reason=reason)


@click.command()
@connector_argument
@click.option("--reason", help="Why; kept in connector_audit.")
def snapshot(connector_id: str, reason: str | None) -> None:
    """Ask for a permission snapshot of CONNECTOR.

    It comes beside the regular ones: the worker takes it as soon as the connector runs.
    `verity connectors` shows when it is done.
    """
    settings = read_settings()
    require_known(connector_id, read_specs(settings))
    run(
        settings,
        lambda pool: Controls(pool).request_snapshot(connector_id, who=who(), reason=reason),
    )
    click.echo(f"{connector_id}: a snapshot is asked for.")


def _set_paused(connector_id: str, *, is_paused: bool, reason: str | None) -> None:
    settings = read_settings()
    require_known(connector_id, read_specs(settings))
    has_changed = run(
        settings,
        lambda pool: Controls(pool).set_paused(
            connector_id, is_paused=is_paused, who=who(), reason=reason
        ),
    )
    state = "paused" if is_paused else "resumed"
    click.echo(
        f"{connector_id}: {state}." if has_changed else f"{connector_id}: was {state} already."
    )


@click.command()
@connector_argument
@click.option("--reason", help="Why; kept in connector_audit.")
def restart(connector_id: str, reason: str | None) -> None:
    """Stop CONNECTOR and start it again, now, however long it was to wait.

    Its worker sees it within 2 seconds and finishes the page in hand. The connector is
    constructed again; settings and secrets stay those that the worker was started with.
    """
    settings = read_settings()
    require_known(connector_id, read_specs(settings))
    run(
        settings,
        lambda pool: Controls(pool).request_restart(connector_id, who=who(), reason=reason),
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
    settings = read_settings()
    require_known(connector_id, read_specs(settings))
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

    stored, after = run(settings, plan)
    bodies = {"before": position_body(stored), "after": position_body(after)}
    if not is_agreed:
        for name, body in bodies.items():
            click.echo(f"{name}: {json.dumps(body)}", err=True)
        click.confirm(
            f"Publish again what {connector_id} published in between?", abort=True, err=True
        )
    run(
        settings,
        lambda pool: Controls(pool).rewind(stored, after, who=who(), reason=reason),
    )
    if as_json:
        echo_json([{"connector_id": connector_id, **bodies}])
    else:
        click.echo(f"{connector_id}: rewound; verity resume {connector_id} lets it go on.")
