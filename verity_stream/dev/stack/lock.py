"""Write `stack.lock.toml` anew: `python -m verity_stream.dev.stack.lock`.

For maintainers, after a change of the versions below. Dependencies are resolved by jgo, every jar
is downloaded and hashed. Nothing else in this package resolves anything.
"""

import hashlib
import tempfile
from pathlib import Path

from jgo.maven import MavenContext, PythonResolver

from verity_stream.dev.stack.jars import LOCK_FILE

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.4"
JAVA_MINIMUM = 17
POSTGRES_MAJOR = 18

# The broker with all it needs at run time.
RESOLVED = (f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",)
# Wanted without their dependencies. The command-line tools need nothing beyond the broker's jars
# unless they speak to Kafka Connect; the SLF4J binding is in Kafka's archive but in no POM.
ALONE = (
    f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}",
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}",
)


def main() -> None:
    """Resolve, hash and write."""
    with tempfile.TemporaryDirectory() as scratch:
        context = MavenContext(resolver=PythonResolver(), repo_cache=Path(scratch), timeout=60)
        _, resolved = context.resolver.get_dependency_list(
            [context.create_dependency(coordinates) for coordinates in RESOLVED]
        )
        found = {f"{d.dep.groupId}:{d.dep.artifactId}:{d.dep.version}" for d in resolved}
        lines = []
        for coordinates in sorted({*RESOLVED, *ALONE, *found}):
            group, artifact, version = coordinates.split(":")
            path = context.project(group, artifact).at_version(version).artifact().resolve()
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f'"{coordinates}" = "{sha256}"\n')
    LOCK_FILE.write_text(
        "# Written by `python -m verity_stream.dev.stack.lock`. Maven coordinates and SHA-256.\n"
        f'kafka_version = "{KAFKA_VERSION}"\n'
        f"java_minimum = {JAVA_MINIMUM}\n"
        f"postgres_major = {POSTGRES_MAJOR}\n"
        "\n[jars]\n" + "".join(lines),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
