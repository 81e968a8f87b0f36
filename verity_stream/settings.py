"""Settings of the process, from the environment, and of the connectors, from `verity.toml`."""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import SettingsError

from verity_common.config import VerityConfig
from verity_sdk.connector_base import BaseConnector
from verity_sdk.errors import Misconfigured
from verity_sdk.position import NAME_RULE
from verity_sdk.position import is_valid_name as is_valid_name  # Others import it from here.
from verity_sdk.settings import Duration

ENTRY_POINT_GROUP = "verity.connectors"


class StreamSettings(VerityConfig):
    """The settings of a worker; each is an environment variable `VERITY_<NAME>`.

    `VERITY_CONFIG` names the file of connectors. `VERITY_KAFKA__…` and `VERITY_DATABASE__…`
    come from `VerityConfig`.
    """

    config: Path = Field(Path("verity.toml"), description="The file that lists the connectors.")

    app_id: str = Field("verity-stream", description="Consumer group of the workers.")
    worker_name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}",
        description="How this worker is called in states and logs; host:pid if not given.",
    )
    delivery: Literal["exactly_once", "at_least_once"] = Field(
        "exactly_once",
        description="`exactly_once`, or `at_least_once`: without transactions; a crash repeats up "
        "to the page in flight.",
    )
    migrate: Literal["apply", "check"] = Field(
        "apply", description="Apply missing migrations at start, or only say which are missing."
    )
    database_behind: Literal["kafka_wins", "stop"] = Field(
        "kafka_wins",
        description="What to do when the database is more than a page behind the topic, as "
        "after a restored backup: follow the topic, or block the connector.",
    )
    topic_behind: Literal["repair", "stop"] = Field(
        "repair",
        description="What to do when the topic lacks checkpoints that were published, as after "
        "it was deleted: go on from the last one it has, or from Postgres where it has none, or "
        "block the connector.",
    )
    other_cluster: Literal["stop", "adopt"] = Field(
        "stop",
        description="What to do when the database's checkpoints belong to another Kafka cluster: "
        "block the connectors, or take them over into this one, as after a move.",
    )

    checkpoint_partitions: int = Field(
        24,
        ge=1,
        le=1000,
        description="Of the topics of checkpoints and ids, for good; at least twice the most "
        "workers.",
    )
    dead_letter_retention: Duration | None = Field(
        None,
        description="How long dead letters are kept, where the topic is created; for ever if not "
        "given: each is the only copy of something that was not published.",
    )

    page_events: int = Field(
        8000, ge=1, le=100_000, description="Small pages are coalesced up to this many events."
    )
    page_bytes: int = Field(
        8 * 1024 * 1024,
        ge=16_384,
        description="… or this many bytes of JSON, whichever comes first.",
    )
    page_wait: Duration = Field(timedelta(milliseconds=250), description="… for at most this long.")
    fetch_timeout: Duration = Field(
        timedelta(minutes=5), description="How long a source may take for the next event or page."
    )
    transaction_timeout: Duration = Field(
        timedelta(seconds=60),
        description="After this long the broker ends a transaction that is still open, as that "
        "of a worker that was killed; its `transaction.max.timeout.ms` must allow it.",
    )
    seen_window_ids: int = Field(
        1_000_000, ge=1000, description="At most this many event ids are remembered per connector."
    )
    backoff_max: Duration = Field(
        timedelta(minutes=1),
        description="Longest wait of a connector that backs off before it is tried again.",
    )
    blocked_probe: Duration = Field(
        timedelta(minutes=5), description="How often a blocked connector is tried again."
    )

    watchdog_timeout: Annotated[Duration, Field(ge=timedelta(seconds=1))] = Field(
        timedelta(minutes=2),
        description="A worker whose timer, assignment or mirror stands still for this long ends.",
    )
    session_timeout_seconds: float = Field(
        6.0,
        ge=1,
        description="A worker that the consumer group has not heard of for this long is replaced; "
        "brokers take 6 or more, unless `group.min.session.timeout.ms` says otherwise.",
    )
    commit_interval_seconds: float = Field(
        1.0, gt=0, description="How often the mirror commits how far it has read."
    )
    broker_wait_seconds: float = Field(
        60.0,
        ge=0,
        description="How long a start waits for a Kafka that is not there yet before it gives up.",
    )
    web_bind: str = Field(
        "127.0.0.1",
        description="Address on which the worker's web server listens; whoever reaches it can "
        "read `/metrics` and `/checkpoints`.",
    )
    web_port: int = Field(6066, ge=1, le=65535, description="Its port.")

    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: readable on a terminal, JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="`debug`, `info`, `warning` or `error`."
    )


def load_settings() -> StreamSettings:
    """Read the process's settings from the environment.

    Raises:
        Misconfigured: One message that names every variable at fault, without its value.
    """
    try:
        return StreamSettings()
    except ValidationError as error:
        raise Misconfigured("\n".join(_faults(error, "VERITY_", "__"))) from None
    except SettingsError as error:
        raise Misconfigured(f"VERITY_…: {error}") from None  # It names the field, not the value.


class ConnectorOptions(BaseModel):
    """What every connector's table may hold, whatever its type."""

    model_config = ConfigDict(extra="ignore")

    type: str = Field(description="A platform's name, or that of any other installed type.")
    enabled: bool = Field(True, description="`false`: no worker runs it.")
    poll_every: Annotated[Duration, Field(ge=timedelta(milliseconds=1))] = Field(
        timedelta(seconds=30), description="How long after a pass the source is asked again."
    )
    snapshot_every: Duration | None = Field(
        timedelta(hours=24),
        description="How often permissions are read as a whole.",
    )
    fetch_timeout: Duration | None = Field(
        None, description="`VERITY_FETCH_TIMEOUT` for this connector alone."
    )
    lookback: Duration | None = Field(
        None,
        description="How far before the watermark ids are remembered, and a plain source is asked "
        "again; as the type says if not given: a minute, or what its platform's page says.",
    )
    partition_by: Literal["principal_ref", "asset_ref", "event_id"] = Field(
        "principal_ref",
        description="The field that is the key of an event's record: `principal_ref`, "
        "`asset_ref` or `event_id`. Events of one key keep their order.",
    )


@dataclass(frozen=True, slots=True)
class ConnectorSpec:
    """One configured connector: what to construct and how to drive it."""

    connector_id: str
    cls: type[BaseConnector]
    platform: str
    config: Any
    options: ConnectorOptions

    @property
    def declared_platform(self) -> str | None:
        """The `PLATFORM` of the connector's class; None where each event's own counts."""
        return self.platform if self.cls.PLATFORM else None

    @property
    def lookback(self) -> timedelta:
        """How far before the watermark ids are remembered, and a plain source is asked again."""
        return self.cls.lookback if self.options.lookback is None else self.options.lookback

    @property
    def retention(self) -> timedelta | None:
        """How far back the source serves: as its settings say, else its class; None: not known."""
        for declared in (self.config, self.cls):
            retention = getattr(declared, "retention", None)
            if isinstance(retention, timedelta):
                return retention
        return None


def configured_platforms(path: Path) -> dict[str, str]:
    """The platform of every enabled connector of a `verity.toml`, by connector id.

    Reads ids, types and `enabled` only: no reference to a secret is resolved, and a table that is
    wrong elsewhere is none of its business.

    Raises:
        Misconfigured: The file can't be read, or a type is not installed here.
    """
    tables = _read(path).get("connectors", {})
    types = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    platforms = {}
    for connector_id, table in tables.items() if isinstance(tables, dict) else ():
        if isinstance(table, dict) and table.get("enabled", True) is not False:
            try:
                _, platforms[connector_id] = _connector_class(str(table.get("type", "")), types)
            except _Faults as found:
                raise Misconfigured(
                    "\n".join(f"[connectors.{connector_id}] {fault}" for fault in found.faults)
                ) from None
    return platforms


def load_connectors(path: Path) -> list[ConnectorSpec]:
    """Read, resolve and validate the connectors of a `verity.toml`, before anything starts.

    Raises:
        Misconfigured: One message that names every fault of the file.
    """
    document = _read(path)
    tables = document.pop("connectors", {})
    faults = [f"{path}: unknown table [{name}]" for name in document]
    if not isinstance(tables, dict):
        raise Misconfigured(f"{path}: `connectors` must be tables [connectors.<connector_id>]")
    types = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    specs: list[ConnectorSpec] = []
    for connector_id, table in tables.items():
        where = f"[connectors.{connector_id}]"
        if not is_valid_name(connector_id):
            faults.append(f"{where}: an id is {NAME_RULE}")
        elif not isinstance(table, dict):
            faults.append(f"{where}: must be a table")
        else:
            try:
                specs.append(_load_connector(connector_id, table, types))
            except _Faults as found:
                faults += [f"{where} {fault}" for fault in found.faults]
    if faults:
        raise Misconfigured("\n".join(faults))
    return specs


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise Misconfigured(f"VERITY_CONFIG: no file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Misconfigured(f"VERITY_CONFIG: {path} can't be read: {error}") from None


class _Faults(Exception):
    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults


def _load_connector(
    connector_id: str, table: Mapping[str, Any], types: Mapping[str, EntryPoint]
) -> ConnectorSpec:
    faults: list[str] = []
    resolved = resolve_secrets(dict(table), "", faults)
    try:
        options = ConnectorOptions.model_validate(resolved)
    except ValidationError as error:
        faults += _faults(error)
        # With the other options' defaults, so that the type's own faults are named as well.
        options = ConnectorOptions(type=str(table.get("type", "")))
    if faults and not options.type:
        raise _Faults(*faults)
    try:
        cls, platform = _connector_class(options.type, types)
        config = _connector_config(connector_id, resolved, cls)
    except _Faults as found:
        raise _Faults(*faults, *found.faults) from None
    if faults:
        raise _Faults(*faults)
    return ConnectorSpec(connector_id, cls, platform, config, options)


def _connector_class(name: str, types: Mapping[str, EntryPoint]) -> tuple[type[BaseConnector], str]:
    """The class behind a connector type, and its platform."""
    point = types.get(name)
    if point is None:
        known = ", ".join(sorted(types)) or "none"
        raise _Faults(f"type: no connector type {name!r} is installed (known: {known})")
    try:
        cls = point.load()
    except Exception as error:
        raise _Faults(f"type: {point.value} can't be imported: {error!r}") from error
    if not (isinstance(cls, type) and issubclass(cls, BaseConnector)):
        raise _Faults(f"type: {point.value} is not a subclass of BaseConnector")
    if cls.__abstractmethods__:
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise _Faults(f"type: {point.value} does not implement {missing}")
    platform = str(cls.PLATFORM or name)
    if not is_valid_name(platform):
        raise _Faults(f"type: PLATFORM {platform!r}: a platform is {NAME_RULE}")
    return cls, platform


def _connector_config(connector_id: str, table: Mapping[str, Any], cls: type[BaseConnector]) -> Any:
    """The table validated into the class's `Settings`, or as a dict where it has none."""
    model = cls.Settings
    if model is None:
        return {**table, "connector_id": connector_id}
    own = {
        name: value
        for name, value in table.items()
        if name in model.model_fields or name not in ConnectorOptions.model_fields
    }
    if "connector_id" in model.model_fields or model.model_config.get("extra") == "allow":
        own["connector_id"] = connector_id
    try:
        return model.model_validate(own)
    except ValidationError as error:
        raise _Faults(*_faults(error)) from None


def resolve_secrets(value: Any, where: str, faults: list[str]) -> Any:
    """Replace `env:NAME` and `file:PATH` in any string value; the value found is never shown."""
    if isinstance(value, dict):
        return {
            key: resolve_secrets(item, f"{where}.{key}".lstrip("."), faults)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            resolve_secrets(item, f"{where}[{index}]", faults) for index, item in enumerate(value)
        ]
    if not isinstance(value, str):
        return value
    kind, colon, name = value.partition(":")
    if colon and kind == "env":
        if name not in os.environ:
            faults.append(f"{where}: the environment variable {name} is not set")
        return os.environ.get(name, "")
    if colon and kind == "file":
        try:
            return Path(name).read_text("utf-8-sig").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            faults.append(f"{where}: the file {name} can't be read: {reason}")
            return ""
    return value


def _faults(error: ValidationError, prefix: str = "", separator: str = ".") -> list[str]:
    """One line a fault: the setting and what is wrong with it, never the value it had."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        name = separator.join(str(part) for part in fault["loc"])
        if prefix:
            name = name.upper()
        lines.append(f"{prefix}{name}: {fault['msg']}")
    return lines
