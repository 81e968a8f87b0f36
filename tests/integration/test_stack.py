"""`verity dev` on real servers."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import UnknownTopicOrPartitionError
from click.testing import CliRunner
from stack_fixtures import StackFactory

from verity_stream.dev.command import NOT_RUNNING, dev
from verity_stream.dev.stack import DATABASE_VARIABLE, KAFKA_VARIABLE, Stack, StackError
from verity_stream.dev.stack.jars import cache_directory, load_lock
from verity_stream.dev.stack.server import free_port, port_is_taken, wait_until

pytestmark = pytest.mark.stack


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that is none of ours, of the user that PostgreSQL runs as."""
    program = subprocess.Popen(["sleep", "120"], **Stack(tmp_path).postgres.run_as())
    yield program
    program.kill()
    program.wait(10)


async def test_session_stack_serves_both_by_the_name_localhost(
    bootstrap_servers: str, dsn: str
) -> None:
    await create_topic(bootstrap_servers, "hello")
    await publish(bootstrap_servers, "hello", b"1")
    assert await read_back(bootstrap_servers, "hello") == [b"1"]
    version = await fetch_value(dsn, "SHOW server_version_num")
    assert int(version) // 10000 == load_lock().postgres_major


async def test_each_test_gets_an_empty_database_of_its_own(database: str, dsn: str) -> None:
    assert database != dsn
    await execute(database, "CREATE TABLE only_here (n int)")
    assert await fetch_value(dsn, "SELECT to_regclass('only_here')") is None


async def test_reads_and_logins_are_in_the_audit_log(make_stack: StackFactory) -> None:
    stack = make_stack()
    stack.postgres.start()
    dsn = stack.postgres.address
    await execute(dsn, "SELECT 'a read that must be seen'")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(dsn.replace(":verity@", ":wrong@"), timeout=30)

    def messages() -> list[str]:
        files = sorted(stack.postgres.log_directory.glob("*.json"))
        lines = [line for file in files for line in file.read_text("utf-8").splitlines()]
        return [json.loads(line).get("message", "") for line in lines]

    def is_complete() -> bool:
        found = "\n".join(messages())
        return (
            "a read that must be seen" in found
            and "connection authorized: user=verity" in found
            and "password authentication failed" in found
        )

    assert wait_until(is_complete, time.monotonic() + 60), messages()


async def test_kafka_creates_no_topic_by_itself(bootstrap_servers: str) -> None:
    """A misspelt topic is an error, not a new topic of one partition that nobody compacts."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, request_timeout_ms=3000)
    async with producer:
        with pytest.raises(UnknownTopicOrPartitionError):
            await producer.send_and_wait("misspelt", b"1")


def test_command_line_from_up_to_wipe(tmp_path: Path) -> None:
    """up, up again, status, logs, down, down again, status, wipe; exit codes included."""
    directory = tmp_path / "stack"
    runner = CliRunner(env={KAFKA_VARIABLE: "", DATABASE_VARIABLE: ""})

    def verity_dev(command: str, *arguments: str, expected_code: int = 0) -> str:
        result = runner.invoke(dev, [command, *arguments, "--dir", str(directory)])
        assert result.exit_code == expected_code, result.output
        return result.output

    verity_dev("status", expected_code=NOT_RUNNING)
    assert not directory.exists(), "status changes nothing"
    verity_dev("down")
    try:
        verity_dev("up", "--kafka-port", "0", "--postgres-port", "0")
        first = json.loads(verity_dev("status", "--json"))
        assert [server["state"] for server in first] == ["running", "running"]
        # Sessions of their own: a Ctrl-C or a hang-up in this terminal does not reach them.
        assert all(os.getsid(server["pid"]) == server["pid"] for server in first)

        began_at = time.monotonic()
        again = verity_dev("up")
        assert time.monotonic() - began_at < 10, "it waits for nothing"
        assert "kafka: already running" in again
        assert "postgres: already running" in again
        assert json.loads(verity_dev("status", "--json")) == first
        assert "already runs on port" in verity_dev(
            "up", "--kafka-port", str(free_port()), expected_code=1
        )
        assert json.loads(verity_dev("status", "--json")) == first

        assert "Kafka Server started" in verity_dev("logs", "kafka", "-n", "50")
        assert "ready to accept connections" in verity_dev("logs", "postgres", "-n", "1000")

        verity_dev("down")
        verity_dev("down")
        assert not any(is_alive(server["pid"]) for server in first)
        assert not any(port_is_taken(server["port"]) for server in first)
        verity_dev("status", expected_code=NOT_RUNNING)
        verity_dev("down", "--wipe")
        assert not any(Path(server["data_dir"]).exists() for server in first)
    finally:
        Stack(directory).down(wipe=True)


def test_external_servers_are_named_and_nothing_is_started(tmp_path: Path) -> None:
    external = {KAFKA_VARIABLE: "kafka.example:9092", DATABASE_VARIABLE: "postgresql://u:p@db/d"}
    runner = CliRunner(env=external)
    for command in ("up", "status"):
        result = runner.invoke(dev, [command, "--dir", str(tmp_path / "stack")])
        assert result.exit_code == 0, result.output
        assert "u:p" not in result.output, "that password is not ours to print"
    assert_nothing_runs(Stack(tmp_path / "stack"))


async def test_killed_servers_return_to_their_ports_with_their_data(
    make_stack: StackFactory,
) -> None:
    stack = make_stack()
    address = stack.up()
    await create_topic(address.bootstrap_servers, "kept")
    await publish(address.bootstrap_servers, "kept", b"1")
    await execute(address.dsn, "CREATE TABLE kept AS SELECT 1 AS n")

    for server in stack.servers:
        pid = server.pid
        server.kill()
        assert pid is not None
        assert not server.is_running()
        assert not port_is_taken(server.port)

    # Another object for the same directory: what it needs to know is on disk.
    assert Stack(stack.directory, kafka_port=0, postgres_port=0).up() == address
    assert await read_back(address.bootstrap_servers, "kept") == [b"1"]
    assert await fetch_value(address.dsn, "SELECT n FROM kept") == 1


@pytest.mark.parametrize("name", ["kafka", "postgres"])
def test_port_taken_is_named_and_leaves_nothing_behind(make_stack: StackFactory, name: str) -> None:
    with socket.create_server(("127.0.0.1", free_port())) as other:
        port = other.getsockname()[1]
        stack = make_stack(**{f"{name}_port": port})
        with pytest.raises(StackError, match=rf"Port {port} .* is taken .* --{name}-port"):
            stack.up()
    assert_nothing_runs(stack)


def test_failed_start_shows_the_log_and_leaves_no_orphan(make_stack: StackFactory) -> None:
    stack = make_stack(postgres_settings={"shared_buffers": "a lot"})
    with pytest.raises(StackError, match=r'(?s)PostgreSQL ended.*"shared_buffers": "a lot"'):
        stack.up()
    assert_nothing_runs(stack)


def test_broker_that_is_not_ready_in_time_is_stopped(make_stack: StackFactory) -> None:
    stack = make_stack()
    with pytest.raises(StackError, match=r"Kafka was not ready within 0\.1 seconds"):
        stack.up(timeout=0.1)
    assert_nothing_runs(stack)


def test_pid_of_another_program_is_never_signalled(
    make_stack: StackFactory, sleeper: subprocess.Popen[bytes]
) -> None:
    """A pid that was reused after a crash belongs to somebody else."""
    stack = make_stack()
    stack.up()
    for server in stack.servers:
        server.kill()
        state_file = server.directory / "state.json"
        state = json.loads(state_file.read_text("utf-8"))
        state_file.write_text(json.dumps({**state, "pid": sleeper.pid}), "utf-8")
    lock = stack.postgres.data_dir / "postmaster.pid"
    lines = lock.read_text("utf-8").splitlines()
    lock.write_text("\n".join([str(sleeper.pid), *lines[1:]]) + "\n", "utf-8")

    assert [server.status().state for server in stack.servers] == ["stopped", "stopped"]
    stack.down()
    stack.postgres.kill()
    stack.postgres.start()
    assert stack.postgres.pid != sleeper.pid
    assert sleeper.poll() is None


def test_interrupted_start_leaves_no_orphan(tmp_path: Path) -> None:
    """Ctrl-C while the servers start stops them; the terminal's signal does not reach them."""
    directory = tmp_path / "stack"
    program = subprocess.Popen(
        [
            *(sys.executable, "-c", "from verity_stream.dev.command import dev; dev()"),
            *("up", "--dir", str(directory), "--kafka-port", "0", "--postgres-port", "0"),
        ],
        env={**os.environ, KAFKA_VARIABLE: "", DATABASE_VARIABLE: ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Tests that run in the background of a shell are deaf to Ctrl-C, and so are their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    stack = Stack(directory)
    try:
        assert wait_until(stack.kafka.is_running, time.monotonic() + 120)
        program.send_signal(signal.SIGINT)
        output, _ = program.communicate(timeout=60)
        assert program.returncode == 1, output
        assert_nothing_runs(stack)
    finally:
        program.kill()
        stack.down(wipe=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test has just run as a plain user")
def test_plain_user_can_run_the_stack() -> None:
    """Root is the special case of this code, so one stack is run by `nobody` when root tests."""
    drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    packages = [path for path in sys.path if path.endswith("site-packages")]
    repository = Path(__file__).parents[2]
    directory = Path(tempfile.mkdtemp(prefix="verity-nobody-"))
    try:
        shutil.copytree(cache_directory(), directory / "jars")
        shutil.chown(directory, "nobody")
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([str(repository), *packages]),
            "VERITY_STACK_CACHE": str(directory / "jars"),
        }
        python = interpreter_for(drop, environ)

        def verity_dev(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [
                    *(*drop, python, "-c", "from verity_stream.dev.command import dev; dev()"),
                    *(*arguments, "--dir", str(directory / "stack")),
                ],
                env=environ,
                cwd="/",
                capture_output=True,
                text=True,
                timeout=150,
            )

        started = verity_dev("up", "--kafka-port", "0", "--postgres-port", "0")
        assert started.returncode == 0, started.stderr
        pids = [server["pid"] for server in json.loads(verity_dev("status", "--json").stdout)]
        assert {psutil.Process(pid).username() for pid in pids} == {"nobody"}
        assert verity_dev("down").returncode == 0
        assert not any(is_alive(pid) for pid in pids)
    finally:
        Stack(directory / "stack").down(wipe=True)
        shutil.rmtree(directory)


def interpreter_for(drop: list[str], environ: dict[str, str]) -> str:
    """A Python of this version that the plain user can run with our packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        probe = [*drop, python, "-c", "import verity_stream.dev.command"]
        try:
            if subprocess.run(probe, env=environ, cwd="/", timeout=60).returncode == 0:
                return python
        except FileNotFoundError:
            continue
    return pytest.skip("no Python here is readable by a plain user")


def assert_nothing_runs(stack: Stack) -> None:
    """No server, and no process that mentions the directory, even as a child of a child."""
    assert [server.status().state for server in stack.servers] == ["stopped", "stopped"]
    strays = [
        process.pid
        for process in psutil.process_iter()
        if mentions(process, str(stack.directory)) and process.pid != os.getpid()
    ]
    assert strays == []


def is_alive(pid: int) -> bool:
    """Whether it runs; an orphan that ended may wait some time for init to collect it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def mentions(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in argument for argument in process.cmdline())
    except psutil.Error:
        return False  # ended meanwhile


async def create_topic(bootstrap_servers: str, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def publish(bootstrap_servers: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all") as producer:
        await producer.send_and_wait(topic, value)


async def read_back(bootstrap_servers: str, topic: str) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers)
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        records = await consumer.getmany(partition, timeout_ms=10_000)
        return [record.value for record in records.get(partition, [])]
    finally:
        await consumer.stop()


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=30)
    try:
        await connection.execute(statement, timeout=30)
    finally:
        await connection.close(timeout=5)


async def fetch_value(dsn: str, query: str) -> Any:
    connection = await asyncpg.connect(dsn, timeout=30)
    try:
        return await connection.fetchval(query, timeout=30)
    finally:
        await connection.close(timeout=5)
