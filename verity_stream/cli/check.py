"""`verity check`: everything that could keep the workers from working, found at once."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from verity_sdk.connector_base import BaseConnector, has_check
from verity_sdk.errors import Denied, Misconfigured, VerityError
from verity_sdk.postgres_dsn import read_address
from verity_stream.cli.output import one_line, quiet_logs
from verity_stream.kafka.clients import kafka_admin, partition_counts
from verity_stream.kafka.topics import (
    check_creatable,
    differences,
    misshapen,
    placed_topics,
    worker_topics,
)
from verity_stream.postgres.errors import database_errors
from verity_stream.postgres.pool import (
    DSN,
    POOLED,
    close_pool,
    create_connector_pool,
    create_pool,
    missing_migrations,
    require_usable,
)
from verity_stream.postgres.rights import may_migrate
from verity_stream.redaction import SECRETS
from verity_stream.relay.sources import PublishedByTheRelay
from verity_stream.settings import ConnectorSpec, StreamSettings, load_connectors, load_settings

CONFIGURATION = 2
UNREACHABLE = 1
CLOSE_SECONDS = 5.0


@dataclass
class Findings:
    """What is right and what is wrong, in the order in which it was looked at."""

    good: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def add(self, where: str, error: BaseException) -> None:
        """Note an error; the lines of a Misconfigured are faults of their own."""
        if isinstance(error, Misconfigured):
            for line in str(error).splitlines():
                self.faults.append((CONFIGURATION, f"{where}{line}"))
        elif isinstance(error, VerityError):
            kind = "denied" if isinstance(error, Denied) else "unavailable"
            self.faults.append((UNREACHABLE, f"{where}{kind}: {one_line(error)}"))
        else:
            what = one_line(f"{type(error).__name__}: {error}")
            self.faults.append((UNREACHABLE, f"{where}a bug, please report it: {what}"))

    @property
    def exit_code(self) -> int:
        """2 if the configuration is wrong, else 1 if anything is, else 0."""
        return max((code for code, _ in self.faults), default=0)


class _ConfigPath(BaseSettings):
    """Where the connectors' file is, even if other settings are wrong."""

    model_config = SettingsConfigDict(env_prefix="VERITY_", extra="ignore")

    config: Path = Path("verity.toml")


@click.command()
@click.option("--offline", is_flag=True, help="Only validate; connect to nothing.")
@click.option(
    "--timeout",
    "seconds",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    show_default=True,
    help="Seconds for Kafka, and for each connector.",
)
@click.pass_context
def check(context: click.Context, offline: bool, seconds: float) -> None:
    """Find all that would keep workers from working.

    Validates the environment and verity.toml, then connects to Kafka and Postgres, looks for
    missing migrations, constructs every connector and lets it check its source. Changes nothing.
    Every fault is one line; none hides another. A warning is about topics that lose records in
    time, or with a broker; workers start all the same.

    Exit codes: 0 fine, 1 something can't be reached or refuses, 2 the configuration is wrong.
    """
    quiet_logs()
    findings = Findings()
    settings, specs = validate(findings)
    if settings is not None and not offline:
        asyncio.run(_connect(settings, specs, seconds, findings))
    for line in findings.good:
        click.echo(f"ok     {SECRETS.hide(line)}")
    for line in findings.warnings:
        click.echo(f"warn   {SECRETS.hide(line)}", err=True)
    for _, line in findings.faults:
        click.echo(f"fault  {SECRETS.hide(line)}", err=True)
    if settings is None and not offline:
        click.echo("Nothing was connected to: the settings are wrong.", err=True)
    context.exit(findings.exit_code)


def validate(findings: Findings) -> tuple[StreamSettings | None, Sequence[ConnectorSpec]]:
    """Read all settings and connectors; wrong settings do not hide wrong connectors."""
    settings: StreamSettings | None = None
    try:
        settings = load_settings()
        SECRETS.add_settings(settings)
        settings.kafka.client_options()
        address = read_address(settings.database.dsn.get_secret_value(), DSN)
        findings.warnings += [f"{DSN}: {warning}" for warning in address.warnings]
        findings.good.append("settings of the environment")
    except Misconfigured as error:
        settings = None  # What is wrong is not connected with.
        findings.add("", error)
    except ValueError as error:
        findings.add("", Misconfigured(str(error)))
    try:
        path = settings.config if settings is not None else _ConfigPath().config
    except ValidationError:
        return settings, []  # Named above.
    SECRETS.add_references(path)
    specs: Sequence[ConnectorSpec] = []
    try:
        specs = load_connectors(path)
        findings.good.append(f"{path}: connectors: {len(specs)}")
    except Misconfigured as error:
        findings.add("", error)
    return settings, specs


async def _connect(
    settings: StreamSettings, specs: Sequence[ConnectorSpec], seconds: float, findings: Findings
) -> None:
    kafka, database = Findings(), Findings()
    # Postgres may be away: Kafka and the connectors are checked anyway.
    for_connectors = await create_connector_pool(settings.database)
    try:
        of_connectors = [Findings() for _ in specs]
        await asyncio.gather(
            _check_kafka(settings, specs, seconds, kafka),
            _check_database(settings, database),
            *(
                _check_connector(spec, for_connectors, seconds, found)
                for spec, found in zip(specs, of_connectors, strict=True)
            ),
        )
    finally:
        await close_pool(for_connectors)
    for found in (kafka, database, *of_connectors):
        findings.good += found.good
        findings.warnings += found.warnings
        findings.faults += found.faults


async def _check_kafka(
    settings: StreamSettings, specs: Sequence[ConnectorSpec], seconds: float, findings: Findings
) -> None:
    kafka = settings.kafka
    where = f"Kafka {kafka.bootstrap_servers}: "
    try:
        async with kafka_admin(kafka, seconds) as admin:
            cluster = await admin.describe_cluster()
            names = worker_topics(settings, {spec.platform for spec in specs})
            if kafka.replication_factor <= len(cluster["brokers"]):
                await check_creatable(settings, admin, names)
        counts = await partition_counts(kafka, placed_topics(settings).__contains__, seconds)
        findings.warnings += await differences(settings, names)
    except VerityError as error:
        findings.add(where, error)
        return
    brokers = len(cluster["brokers"])
    if kafka.replication_factor > brokers:
        findings.add(
            where,
            Misconfigured(
                f"VERITY_KAFKA__REPLICATION_FACTOR={kafka.replication_factor} is more than the "
                f"cluster's brokers: {brokers}"
            ),
        )
    if (fault := misshapen(settings, counts)) is not None:
        findings.add(where, fault)
    if not findings.faults:
        findings.good.append(f"{where}answers, brokers: {brokers}")


async def _check_database(settings: StreamSettings, findings: Findings) -> None:
    try:
        pool = await create_pool(settings.database)
        try:
            await require_usable(pool)
            if pool.is_pooled:
                findings.warnings.append(f"{DSN}: {POOLED}")
            async with database_errors("migrations"), pool.acquire() as connection:
                missing = await missing_migrations(connection)
                may_create = await may_migrate(connection)
        finally:
            await close_pool(pool)
    except VerityError as error:
        findings.add("Postgres: ", error)
        return
    names = ", ".join(missing)
    if not missing:
        findings.good.append("Postgres: answers, all migrations are there")
    elif settings.migrate == "check":
        findings.add("Postgres: ", Misconfigured(f"{names} missing: run `verity migrate`"))
    elif not may_create:
        findings.add(
            "Postgres: ",
            Denied(f"{names} missing, and this role may not create or change Verity's tables"),
        )
    else:
        findings.good.append(f"Postgres: answers; {names} missing, the first worker applies them")


async def _check_connector(
    spec: ConnectorSpec, pool: Any, seconds: float, findings: Findings
) -> None:
    where = f"[connectors.{spec.connector_id}] "
    connector: BaseConnector | None = None
    try:
        connector = spec.cls(spec.config, PublishedByTheRelay(), pool)
        if has_check(connector) and inspect.iscoroutinefunction(connector.check):
            await asyncio.wait_for(connector.check(), seconds)
            findings.good.append(f"{where}its source answers")
        else:
            findings.good.append(f"{where}constructed; its type can't check its source")
    except TimeoutError:
        findings.faults.append(
            (UNREACHABLE, f"{where}unavailable: the source did not answer within {seconds:g} s")
        )
    except Exception as error:  # noqa: BLE001 - whatever a connector raises is what is looked for
        findings.add(where, error)
    finally:
        if connector is not None and inspect.iscoroutinefunction(connector.close):
            try:
                await asyncio.wait_for(connector.close(), CLOSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - as above
                findings.add(f"{where}closing: ", error)
