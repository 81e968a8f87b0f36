"""Kafka for programs around Verity: settings, and a producer that loses and repeats nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, Self

import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    NoError,
    TopicAlreadyExistsError,
    for_code,
)
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

logger = logging.getLogger(__name__)

STOP_SECONDS_MAX = 10.0
"""How long a producer may take to send what is left and to close."""

PORT_MAX = 65_535

_BATCH_BYTES = 131_072
# Key, headers and the frame of a record come on top of its value; below 1 MiB aiokafka's own
# default is kept.
_RECORD_FRAME_BYTES = 65_536
_REQUEST_BYTES_MIN = 1_048_576


class KafkaSettings(BaseModel):
    """How to reach Kafka; as environment variables `VERITY_KAFKA__<NAME>`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    bootstrap_servers: str = Field(
        default="localhost:9092",
        min_length=1,
        description="`host:port`, several with commas between.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT",
        description="How the connection is protected: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or "
        "`SASL_SSL`.",
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN",
        description="How to log in where the protocol is a `SASL_…` one: `PLAIN`, "
        "`SCRAM-SHA-256` or `SCRAM-SHA-512`.",
    )
    sasl_username: str | None = Field(default=None, description="Who logs in.")
    sasl_password: SecretStr | None = Field(default=None, description="With what; never shown.")
    ssl_cafile: str | None = Field(
        default=None,
        description="The authorities that are trusted, as a PEM file; without it the system's.",
    )
    request_timeout_seconds: float = Field(
        default=30.0, ge=0.1, le=3600, description="How long one request may take."
    )
    replication_factor: int = Field(
        default=1, ge=1, le=100, description="Of topics that are created."
    )
    event_partitions: int = Field(
        default=6,
        ge=1,
        le=1000,
        description="Of topics that are created, but those of checkpoints and ids.",
    )
    max_record_bytes: int = Field(
        default=1_000_000,
        ge=1024,
        le=100_000_000,
        description="The longest value that is published; the broker's `max.message.bytes` must "
        "have room for it.",
    )
    compression_type: Literal["gzip", "lz4", "zstd", "snappy"] | None = Field(
        default=None,
        description="Of what is published: `gzip`, `lz4`, `zstd` or `snappy`; none if not given, "
        "and then as the topic or the broker says. Any of them is read.",
    )
    client_id: str | None = Field(
        default=None, description="How the brokers call this program in their logs and quotas."
    )

    @field_validator("bootstrap_servers")
    @classmethod
    def _check_servers(cls, servers: str) -> str:
        """Named here: the client would raise a bare ValueError, and only as it starts."""
        named = [server.strip() for server in servers.split(",") if server.strip()]
        if not named or not all(map(_is_address, named)):
            # Not the text: somebody may have put a password into it.
            raise ValueError("each must be host:port, with a port from 1 to 65535, and no scheme")
        return servers

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self._is_sasl and (self.sasl_username is None or self.sasl_password is None):
            raise ValueError(
                f"security_protocol {self.security_protocol} needs sasl_username and sasl_password"
            )
        return self

    @property
    def _is_sasl(self) -> bool:
        return self.security_protocol.startswith("SASL_")

    def client_options(self) -> dict[str, Any]:
        """Keyword arguments for any of aiokafka's clients. They hold the password: don't log them.

        Raises:
            ValueError: `ssl_cafile` can't be read or holds no certificates.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "request_timeout_ms": int(self.request_timeout_seconds * 1000),
        }
        if self.client_id is not None:
            options["client_id"] = self.client_id
        if self.security_protocol.endswith("SSL"):
            options["ssl_context"] = self._ssl_context()
        if self._is_sasl and self.sasl_password is not None:
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.sasl_username
            options["sasl_plain_password"] = self.sasl_password.get_secret_value()
        return options

    def _ssl_context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ssl_cafile)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(
                f"VERITY_KAFKA__SSL_CAFILE: {self.ssl_cafile} can't be used: {error}"
            ) from error


def _is_address(server: str) -> bool:
    """Whether this is `host:port`, or a host alone; an IPv6 address with a port is in brackets."""
    if server.count(":") > 1 and not server.startswith("["):
        try:
            return ipaddress.ip_address(server).version == 6
        except ValueError:
            return False
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/@\[\]]+)(?::([0-9]{1,5}))?", server)
    return found is not None and 1 <= int(found[2] or 1) <= PORT_MAX


def insync_replicas(replication_factor: int) -> int:
    """The `min.insync.replicas` of a topic: more than half, yet one of three may be away.

    With the broker's default of 1 a record is acknowledged that one broker alone has.
    """
    return max(1, (replication_factor + 1) // 2)


@asynccontextmanager
async def create_producer(settings: KafkaSettings) -> AsyncIterator[AIOKafkaProducer]:
    """A started producer that writes values as JSON, for `async with`.

    The topics it sends to are created where they are missing, as the worker creates them.
    Idempotent, and acknowledged by all replicas in sync: what it says is published is published,
    and a retry of its own makes no second copy. On leaving, what was handed to it is sent, for at
    most `STOP_SECONDS_MAX`; whoever must know awaits the futures that `send` hands back.

    Raises:
        ConnectionError: No broker answered, or none let us in; nothing is left open.
        ValueError: A setting can't be used; the message names it.
    """
    producer = _producer(settings)
    where = f"VERITY_KAFKA__BOOTSTRAP_SERVERS={settings.bootstrap_servers}"
    try:
        async with asyncio.timeout(settings.request_timeout_seconds + STOP_SECONDS_MAX):
            await producer.start()
    except TimeoutError as error:
        await _stop(producer)
        raise ConnectionError(f"{where}: Kafka did not answer in time") from error
    except KafkaError as error:
        await _stop(producer)
        raise ConnectionError(f"{where}: no Kafka broker could be reached: {error}") from error
    except BaseException:
        await _stop(producer)
        raise
    try:
        yield producer
    finally:
        await _stop(producer)


class _Producer(AIOKafkaProducer):  # type: ignore[misc]  # aiokafka ships no types
    """Creates a missing topic before the first record to it.

    A broker that creates topics by itself is rightly rare in production; without this, a
    connector's first event would fail after the request time-out.
    """

    def __init__(self, settings: KafkaSettings, **options: Any) -> None:
        super().__init__(**settings.client_options(), **options)
        self._verity_settings = settings
        self._present: set[str] = set()

    async def send(self, topic: str, *arguments: Any, **options: Any) -> Any:
        """As `AIOKafkaProducer.send`."""
        if topic not in self._present:
            await create_topic(self._verity_settings, topic)
            self._present.add(topic)
        return await super().send(topic, *arguments, **options)


async def create_topic(settings: KafkaSettings, topic: str) -> None:
    """Create a topic if it is missing; bounded in time.

    Raises:
        KafkaError: The broker refused or could not be reached.
    """
    admin = AIOKafkaAdminClient(**settings.client_options())
    try:
        async with asyncio.timeout(settings.request_timeout_seconds):
            await admin.start()
            if topic in await admin.list_topics():
                return
            replication = settings.replication_factor
            configs = {"min.insync.replicas": str(insync_replicas(replication))}
            created = NewTopic(topic, settings.event_partitions, replication, topic_configs=configs)
            answer = await admin.create_topics([created])
    except TimeoutError as error:
        raise KafkaTimeoutError(f"topic {topic} could not be created in time") from error
    finally:
        await admin.close()
    for _, code, *message in answer.topic_errors:
        refused = for_code(code)
        if refused not in (NoError, TopicAlreadyExistsError):
            raise refused(f"topic {topic} could not be created: {message}")


def _producer(settings: KafkaSettings) -> AIOKafkaProducer:
    try:
        return _Producer(
            settings,
            acks="all",
            enable_idempotence=True,
            key_serializer=_key_bytes,
            value_serializer=_value_bytes,
            compression_type=settings.compression_type,
            max_batch_size=_BATCH_BYTES,
            max_request_size=max(
                _REQUEST_BYTES_MIN, settings.max_record_bytes + _RECORD_FRAME_BYTES
            ),
        )
    except RuntimeError as error:
        raise ValueError(
            f"VERITY_KAFKA__COMPRESSION_TYPE={settings.compression_type}: {error}"
        ) from error


def _key_bytes(key: str | bytes | None) -> bytes | None:
    return key.encode() if isinstance(key, str) else key


def _value_bytes(value: Any) -> bytes | None:
    """The value as JSON; None stays None, which is a deletion where a topic is compacted.

    Raises:
        TypeError, ValueError, RecursionError: It can't be written as JSON.
    """
    if value is None:
        return None
    try:
        return orjson.dumps(value)
    except TypeError:
        # orjson refuses whole numbers beyond 64 bits, which JSON allows.
        return json_bytes(value)


def json_bytes(value: Any) -> bytes:
    """Compact JSON by the standard library: slower, and without orjson's limits.

    Raises:
        TypeError, ValueError, RecursionError: It can't be written as JSON.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


async def _stop(producer: AIOKafkaProducer) -> None:
    """Stop, bounded in time; never raises, for it must not hide why the block was left."""
    stopping = asyncio.ensure_future(producer.stop())
    try:
        await asyncio.wait({stopping}, timeout=STOP_SECONDS_MAX)
    finally:
        if not stopping.done():
            logger.error(
                "the Kafka producer did not stop within %g s; records that were not "
                "acknowledged may not have been published",
                STOP_SECONDS_MAX,
            )
            stopping.cancel()
            await abandon(producer)
    if not stopping.cancelled() and (error := stopping.exception()) is not None:
        logger.error("the Kafka producer did not stop cleanly: %s", error)


async def abandon(producer: AIOKafkaProducer) -> None:
    """Leave a producer whose stop() was cancelled; it keeps its sender and its connections."""
    sender = producer._sender.sender_task  # noqa: SLF001 - aiokafka shows it nowhere else
    for _ in range(3):
        # Cancelled once, it still waits for its requests, which wait for the broker; cancelled
        # again, so are they.
        if sender is not None and not sender.done():
            sender.cancel()
            await asyncio.wait({sender}, timeout=0.2)
    try:
        async with asyncio.timeout(1):
            await producer.client.close()
    except TimeoutError:
        logger.warning("the connections of a Kafka producer did not close within 1 s")
