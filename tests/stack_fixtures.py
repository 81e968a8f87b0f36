"""Fixtures with a real Kafka and a real PostgreSQL.

A test that cannot have its stack fails. It is not skipped: a guarantee whose proof was skipped
reads like one that was kept.
"""

import asyncio
import atexit
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from verity_stream.dev.stack import (
    DATABASE_VARIABLE,
    KAFKA_PORT,
    KAFKA_VARIABLE,
    NO_SETTINGS,
    POSTGRES_PORT,
    Stack,
    StackAddress,
    StackError,
)
from verity_stream.dev.stack.jars import cache_directory, class_path, load_lock
from verity_stream.dev.stack.java import find_java
from verity_stream.dev.stack.kafka import KafkaServer, serves_metadata
from verity_stream.dev.stack.postgres import VERITY

T = TypeVar("T")
StackFactory = Callable[..., Stack]

DEFAULT_DSN = f"postgresql://{VERITY}:{VERITY}@localhost:{POSTGRES_PORT}/{VERITY}"
CONNECT_SECONDS = 30

JAVA_TOOL_OPTIONS = "JAVA_TOOL_OPTIONS"
# Brokers of tests live for seconds: half of what each costs is what Java's second compiler does.
ONE_COMPILER = "-XX:TieredStopAtLevel=1"
has_own_java_options = JAVA_TOOL_OPTIONS in os.environ
os.environ.setdefault(JAVA_TOOL_OPTIONS, ONE_COMPILER)


def start_java_fast() -> None:
    """Let brokers that are started from now on map their classes from an archive of this machine.

    Loading them is half of what a start costs, 1.5 s of CPU, and the suite starts fifty brokers.
    The first process on a machine makes the archive by a broker of its own; meanwhile, and where
    it can't be made, brokers start as ever. Java itself refuses an archive that does not fit.
    """
    if has_own_java_options or KAFKA_VARIABLE in os.environ:
        return
    with suppress(OSError, StackError):
        archive = _class_archive()
        if not archive.exists():
            _archive_classes(archive)
        if archive.exists():
            os.environ[JAVA_TOOL_OPTIONS] = f"{ONE_COMPILER} -XX:SharedArchiveFile={archive}"


@cache
def _class_archive() -> Path:
    lock = load_lock()
    java = Path(find_java(lock.java_minimum)).resolve()
    fits = f"{java} {java.stat().st_mtime_ns} {class_path(lock, cache_directory())}"
    return cache_directory() / f"test-classes-{sha256(fits.encode()).hexdigest()[:16]}.jsa"


@cache
def _archive_classes(archive: Path) -> None:
    """Try it once a process, and only one process at a time."""
    made = archive.with_suffix(".new")
    with (
        tempfile.TemporaryDirectory(prefix="verity-classes-") as directory,
        archive.with_suffix(".lock").open("w") as lock,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        made.unlink(missing_ok=True)
        os.environ[JAVA_TOOL_OPTIONS] = f"{ONE_COMPILER} -XX:ArchiveClassesAtExit={made}"
        broker = KafkaServer(Path(directory) / "kafka", 0, NO_SETTINGS)
        try:
            broker.start()
            broker.stop(CONNECT_SECONDS)  # Java writes it as it ends.
        finally:
            broker.kill()
            os.environ[JAVA_TOOL_OPTIONS] = ONE_COMPILER
        if made.exists():
            made.rename(archive)


@contextmanager
def temporary_stack(
    *,
    kafka_port: int = 0,
    postgres_port: int = 0,
    kafka_settings: Mapping[str, str] = NO_SETTINGS,
    postgres_settings: Mapping[str, str] = NO_SETTINGS,
) -> Iterator[Stack]:
    """A stack, not started, that is killed and removed at the end or when Python exits."""
    start_java_fast()
    directory = Path(tempfile.mkdtemp(prefix="verity-stack-"))
    # PostgreSQL runs as another user when the tests run as root, and must get in.
    directory.chmod(0o755)
    stack = Stack(
        directory,
        kafka_port=kafka_port,
        postgres_port=postgres_port,
        kafka_settings=kafka_settings,
        postgres_settings=postgres_settings,
    )

    def remove() -> None:
        for server in stack.servers:
            server.kill()
            server.wipe()
        shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    try:
        yield stack
    finally:
        remove()
        atexit.unregister(remove)


@pytest.fixture(scope="session")
def _running() -> Iterator[tuple[Stack, StackAddress]]:
    with temporary_stack() as stack:
        yield stack, stack.up(environ=os.environ)


@pytest.fixture(scope="session")
def stack(_running: tuple[Stack, StackAddress]) -> Stack:
    """The stack of this session, on free ports. Do not stop its servers: use `make_stack`."""
    return _running[0]


@pytest.fixture(scope="session")
def bootstrap_servers(_running: tuple[Stack, StackAddress]) -> str:
    """Kafka of the session's stack, or the one that the environment names."""
    return _running[1].bootstrap_servers


@pytest.fixture(scope="session")
def dsn(_running: tuple[Stack, StackAddress]) -> str:
    """PostgreSQL of the session's stack, as superuser, or the one that the environment names."""
    return _running[1].dsn


@pytest.fixture(scope="session")
def template_database(dsn: str) -> Iterator[str]:
    """The name of an empty database from which `database` is cloned.

    Whoever wants migrations in every test's database applies them here once, and disconnects.
    """
    name = f"template_{secrets.token_hex(6)}"
    _run(_execute(dsn, f'CREATE DATABASE "{name}"'))
    yield name
    _run(_execute(dsn, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


@pytest_asyncio.fixture
async def database(dsn: str, template_database: str) -> AsyncIterator[str]:
    """The DSN of a database of this test's own."""
    name = f"test_{secrets.token_hex(6)}"
    await _execute(dsn, f'CREATE DATABASE "{name}" TEMPLATE "{template_database}"')
    yield with_database(dsn, name)
    await _execute(dsn, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def make_stack() -> Iterator[StackFactory]:
    """`temporary_stack` as a function: stacks of a test's own, with settings, or to kill."""
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(temporary_stack(**options))


@pytest.fixture(scope="session")
def default_stack() -> Iterator[StackAddress]:
    """A stack on the default ports: one that `verity dev up` started, or one of this session."""
    serving = {}
    if serves_metadata("127.0.0.1", KAFKA_PORT):
        serving[KAFKA_VARIABLE] = f"localhost:{KAFKA_PORT}"
    if _run(_accepts_login(DEFAULT_DSN)):
        serving[DATABASE_VARIABLE] = DEFAULT_DSN
    with temporary_stack(kafka_port=KAFKA_PORT, postgres_port=POSTGRES_PORT) as stack:
        try:
            address = stack.up(environ=serving)
        except StackError as error:
            pytest.fail(f"These tests need a stack on the default ports: {error}")
        yield address


def with_database(dsn: str, name: str) -> str:
    """The same server and role, another database."""
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=CONNECT_SECONDS)
    try:
        await connection.execute(statement, timeout=30)
    finally:
        await connection.close(timeout=CONNECT_SECONDS)


async def _accepts_login(dsn: str) -> bool:
    try:
        await _execute(dsn, "SELECT 1")
    except (OSError, TimeoutError, asyncpg.PostgresError):
        return False
    return True


def _run(work: Coroutine[object, object, T]) -> T:
    """Run to the end in a thread of its own: no event loop of pytest-asyncio is touched."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
