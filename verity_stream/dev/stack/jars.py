"""Kafka's jars: which ones, by hash, and where they are on this machine.

`stack.lock.toml` is the only place that knows versions and hashes. A jar is used after its SHA-256
was compared with the lock, every time; a jar that differs is removed. jgo's Maven classes do the
download and know where from, so no registry is named here.
"""

import hashlib
import os
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from verity_stream.dev.stack.errors import StackError

LOCK_FILE = Path(__file__).with_name("stack.lock.toml")
DOWNLOADS_AT_ONCE = 8
DOWNLOAD_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Jar:
    """One Maven artifact, `group:artifact:version`, and what its bytes must hash to."""

    coordinates: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Group included: two groups may publish artifacts of one name."""
        return self.coordinates.replace(":", "_") + ".jar"


@dataclass(frozen=True, slots=True)
class StackLock:
    """The content of `stack.lock.toml`."""

    kafka_version: str
    java_minimum: int
    postgres_major: int
    jars: tuple[Jar, ...]


def load_lock(path: Path = LOCK_FILE) -> StackLock:
    """Read the lock file."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return StackLock(
        kafka_version=data["kafka_version"],
        java_minimum=data["java_minimum"],
        postgres_major=data["postgres_major"],
        jars=tuple(Jar(coordinates, sha256) for coordinates, sha256 in data["jars"].items()),
    )


def cache_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the jars: `VERITY_STACK_CACHE`, or one below the user's cache directory."""
    if chosen := environ.get("VERITY_STACK_CACHE"):
        return Path(chosen).expanduser().absolute()
    caches = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser().absolute() / "verity-stream" / "jars"


def verify(path: Path, jar: Jar) -> None:
    """Return when the file is the locked jar; otherwise remove it and raise StackError."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != jar.sha256:
        path.unlink()
        raise StackError(
            f"{jar.coordinates} is not the file that {LOCK_FILE.name} names "
            f"(SHA-256 {found}, expected {jar.sha256}). It was removed; nothing ran from it."
        )


def class_path(lock: StackLock, cache: Path) -> tuple[Path, ...]:
    """Every jar of the lock, present in `cache` and verified; missing ones are downloaded.

    Raises:
        StackError: The cache cannot be written, a download failed, or a jar's hash differs. No
            file that differs from the lock is left in the cache.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        missing = [jar for jar in lock.jars if not _is_cached(jar, cache)]
        if missing:
            _download(missing, cache)
    except OSError as error:
        raise StackError(
            f"The jar cache {cache} cannot be used: {error}. "
            "Set VERITY_STACK_CACHE to a folder that you can write."
        ) from error
    return tuple(cache / jar.file_name for jar in lock.jars)


def _is_cached(jar: Jar, cache: Path) -> bool:
    path = cache / jar.file_name
    if not path.exists():
        return False
    try:
        verify(path, jar)
    except StackError as error:
        _say(f"{error} Downloading it again.")
        return False
    return True


def _download(jars: Sequence[Jar], cache: Path) -> None:
    """Fetch into a scratch folder, verify, then rename: a jar is whole or absent."""
    # Imported here: a start from a full cache needs neither jgo nor requests.
    from jgo.maven import MavenContext, PythonResolver

    _say(f"Downloading {len(jars)} jars into {cache}, once ...")
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as scratch:
        context = MavenContext(
            resolver=PythonResolver(),
            repo_cache=Path(scratch),
            timeout=DOWNLOAD_TIMEOUT_SECONDS,
        )

        def fetch(jar: Jar) -> int:
            group, artifact, version = jar.coordinates.split(":")
            try:
                path = context.project(group, artifact).at_version(version).artifact().resolve()
            # jgo raises RuntimeError and whatever requests and urllib3 raise.
            except Exception as error:
                raise StackError(f"{jar.coordinates} could not be downloaded: {error}") from error
            verify(path, jar)
            size = path.stat().st_size
            path.replace(cache / jar.file_name)
            return size

        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            megabytes = 0.0
            try:
                for done, size in enumerate(pool.map(fetch, jars), start=1):
                    megabytes += size / 1e6
                    if done % 10 == 0 or done == len(jars):
                        _say(f"  {done} of {len(jars)} jars, {megabytes:.0f} MB")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - progress, for whoever waits
