"""A real Apache Kafka: one KRaft node, broker and controller in one JVM."""

import base64
import os
import signal
import socket
import struct
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import psutil

from verity_stream.dev.stack.errors import StackError
from verity_stream.dev.stack.jars import cache_directory, class_path, load_lock
from verity_stream.dev.stack.java import find_java
from verity_stream.dev.stack.server import Server, free_port

FORMAT_SECONDS = 120

BROKER_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # A misspelt topic must be an error: ours are created with their partitions and compaction.
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "5",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "5",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # One developer, one machine: no reason to wait for more members, or to keep much.
    "group.initial.rebalance.delay.ms": "0",
    # A killed broker may register again only when its former session is over (default 9 s).
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    "log.retention.hours": "168",
    "log.segment.bytes": str(128 * 1024 * 1024),
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
}
# Serial: on two cores no slower than G1 with this heap, with fewer threads beside the tests.
JVM_OPTIONS = ("-Xms256m", "-Xmx512m", "-XX:+UseSerialGC")

LOG4J_SETTINGS = """\
status = warn
# Log4j would close the log as soon as the JVM begins to stop, before the broker has said how.
shutdownHook = disable
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${sys:verity.kafka.log}
appender.file.filePattern = ${sys:verity.kafka.log}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = 20MB
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 3
rootLogger.level = info
rootLogger.appenderRef.file.ref = file
"""


class KafkaServer(Server):
    """Apache Kafka on `localhost`, from verified jars, on a Java of at least the locked version.

    Attributes:
        cluster_id: Written when its storage is formatted; the nodes of a cluster share one.
    """

    name = "kafka"
    title = "Kafka"
    port_option = "--kafka-port"

    def __init__(self, directory: Path, port: int, settings: Mapping[str, str]) -> None:
        super().__init__(directory, port)
        self.cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self._settings = dict(settings)
        self._lock = load_lock()

    @property
    def version(self) -> str:
        """The locked version of Kafka."""
        return self._lock.kafka_version

    @property
    def address(self) -> str:
        """The bootstrap servers."""
        return f"localhost:{self.port}"

    @cached_property
    def jars(self) -> tuple[Path, ...]:
        """The verified jars; the first use on a machine downloads them."""
        return class_path(self._lock, cache_directory())

    def java_command(self, main_class: str, *arguments: str) -> list[str]:
        """The command that runs one of Kafka's programs from the verified jars.

        For example `org.apache.kafka.tools.ProducerPerformance`.
        """
        return [self._java, "-cp", os.pathsep.join(map(str, self.jars)), main_class, *arguments]

    @cached_property
    def _java(self) -> str:
        return find_java(self._lock.java_minimum)

    @property
    def _marker(self) -> Sequence[str]:
        return (f"-Dverity.kafka.log={self.log_file}",)

    @property
    def _properties_file(self) -> Path:
        return self.directory / "server.properties"

    def _prepare(self) -> None:
        controller_port = free_port()
        properties = {
            **BROKER_SETTINGS,
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://localhost:{self.port}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "log.dirs": str(self.data_dir),
            **self._settings,
        }
        self._properties_file.write_text(
            "".join(f"{key}={_escape(value)}\n" for key, value in properties.items()),
            encoding="utf-8",
        )
        self._log4j_file.write_text(LOG4J_SETTINGS, encoding="utf-8")
        if not (self.data_dir / "meta.properties").exists():
            self._format()

    def _format(self) -> None:
        result = subprocess.run(
            self.java_command(
                "kafka.tools.StorageTool",
                "format",
                f"--cluster-id={self.cluster_id}",
                f"--config={self._properties_file}",
                # A format that was killed half-way is completed.
                "--ignore-formatted",
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FORMAT_SECONDS,
            start_new_session=True,
        )
        if result.returncode != 0:
            raise StackError(
                f"Kafka's storage in {self.data_dir} could not be formatted:\n"
                f"{result.stdout}{result.stderr}"
            )

    def _command(self) -> Sequence[str]:
        java, *class_path_and_main = self.java_command("kafka.Kafka", str(self._properties_file))
        return [
            java,
            *JVM_OPTIONS,
            *self._marker,
            f"-Dlog4j2.configurationFile={self._log4j_file}",
            *class_path_and_main,
        ]

    def _is_ready(self, pid: int) -> bool:
        return serves_metadata("127.0.0.1", self.port)

    def _ask_to_stop(self, process: psutil.Process) -> None:
        process.send_signal(signal.SIGTERM)

    @property
    def _log4j_file(self) -> Path:
        return self.directory / "log4j2.properties"


def serves_metadata(host: str, port: int, timeout: float = 1) -> bool:
    """Whether a Kafka broker answers there and counts itself among the usable brokers.

    One Metadata request (version 1, no topics), by hand: it needs no client, no event loop and no
    wait, and unlike an open port it is answered with a broker only once that broker is unfenced.
    """
    body = struct.pack(">hhihi", 3, 1, 1, -1, 0)  # Metadata, v1, correlation 1, no client id
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            with connection.makefile("rb") as answer:
                head = answer.read(12)
    except OSError:
        return False
    if len(head) < 12:
        return False
    _, correlation, broker_count = struct.unpack(">iii", head)
    return bool(correlation == 1 and broker_count > 0)


def _escape(value: str) -> str:
    """A value as Java's properties format wants it."""
    return value.replace("\\", "\\\\")
