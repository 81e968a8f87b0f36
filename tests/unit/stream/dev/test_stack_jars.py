"""Only the locked bytes are ever run."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verity_stream.dev.stack import StackError
from verity_stream.dev.stack.jars import Jar, StackLock, cache_directory, class_path, load_lock

CONTENT = b"the real jar"
JAR = Jar("org.example:thing:1.0", hashlib.sha256(CONTENT).hexdigest())
LOCK = StackLock(kafka_version="1.0", java_minimum=17, postgres_major=18, jars=(JAR,))

Publish = Callable[[bytes], None]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Decide what the registry hands out; before that, it is out of reach."""
    import jgo.maven

    state: list[bytes] = []

    class Resolver(jgo.maven.Resolver):
        def download(self, artifact):  # type: ignore[no-untyped-def]
            if not state:
                raise RuntimeError("no network")
            artifact.cached_path.parent.mkdir(parents=True)
            artifact.cached_path.write_bytes(state[-1])
            return artifact.cached_path

        # Never asked for; declared, for the base class has them abstract.
        resolve: Any = None
        get_dependency_list: Any = None
        get_dependency_tree: Any = None
        print_dependency_list: Any = None

    monkeypatch.setattr(jgo.maven, "PythonResolver", Resolver)
    return state.append


def test_missing_jar_is_downloaded_once(tmp_path: Path, publish: Publish) -> None:
    publish(CONTENT)
    (path,) = class_path(LOCK, tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    publish(b"something else by now")
    assert class_path(LOCK, tmp_path / "cache") == (path,)


def test_download_that_differs_is_refused_and_not_kept(tmp_path: Path, publish: Publish) -> None:
    publish(CONTENT + b"!")
    with pytest.raises(StackError, match=r"org\.example:thing:1\.0 is not the file"):
        class_path(LOCK, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cached_jar_that_changed_is_replaced(tmp_path: Path, publish: Publish) -> None:
    (tmp_path / JAR.file_name).write_bytes(CONTENT + b"!")
    publish(CONTENT)
    (path,) = class_path(LOCK, tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.usefixtures("publish")
def test_cached_jar_that_changed_is_not_used_offline(tmp_path: Path) -> None:
    (tmp_path / JAR.file_name).write_bytes(CONTENT + b"!")
    with pytest.raises(StackError, match="could not be downloaded: no network"):
        class_path(LOCK, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_is_named_with_its_remedy(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(StackError, match=f"{blocked / 'jars'} .*VERITY_STACK_CACHE"):
        class_path(LOCK, blocked / "jars")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"VERITY_STACK_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/verity-stream/jars"),
        ({}, "~/.cache/verity-stream/jars"),
    ],
)
def test_cache_directory(environ: dict[str, str], expected: str) -> None:
    assert cache_directory(environ) == Path(expected).expanduser()


def test_lock_file_names_broker_tools_and_whole_hashes() -> None:
    lock = load_lock()
    names = {jar.coordinates for jar in lock.jars}
    assert f"org.apache.kafka:kafka_2.13:{lock.kafka_version}" in names
    assert f"org.apache.kafka:kafka-tools:{lock.kafka_version}" in names, "for the benchmark"
    assert all(re.fullmatch("[0-9a-f]{64}", jar.sha256) for jar in lock.jars)
    assert len({jar.file_name for jar in lock.jars}) == len(lock.jars)
