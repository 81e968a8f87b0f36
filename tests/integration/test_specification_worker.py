"""The specification's own connector class, as an installed package, under the worker."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from test_specification_example import (
    SPECIFICATION,
    entry,
    extract_example,
    pytestmark,
    record_of,
    serving,
)
from workers import Bench

__all__ = ["pytestmark"]  # the same marks: a stack, and the specification at hand


def install(directory: Path, source: str) -> None:
    """What pip leaves of a package with one module and one line of entry points."""
    (directory / "acme_data_platform.py").write_text(source, "utf-8")
    metadata = directory / "acme_data_platform-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: acme-data-platform\nVersion: 1\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[verity.connectors]\nacme_spec = acme_data_platform:AcmeConnector\n"
    )


async def test_the_specifications_class_runs_unchanged_exactly_once(
    bench: Bench, tmp_path: Path
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    install(packages, extract_example(SPECIFICATION.read_text("utf-8")))
    bench.environment["PYTHONPATH"] = str(packages)
    run = secrets.token_hex(4)
    began_at = datetime.now(UTC) - timedelta(hours=1)
    entries = [
        entry(run, number, began_at + timedelta(milliseconds=number // 3)) for number in range(1000)
    ]
    with serving(entries) as api:
        bench.configure(
            prod={
                "type": "acme_spec",
                "poll_every": "200ms",
                "snapshot_every": "1h",
                "acme_api_url": f"http://127.0.0.1:{api.server_port}",
                "acme_api_key": "env:ACME_KEY",
            }
        )
        worker = bench.worker(
            ACME_KEY="sk-secret", VERITY_PAGE_EVENTS="50", VERITY_FAILPOINTS="after_commit=kill@7"
        )
        assert worker.process is not None
        assert await asyncio.to_thread(worker.process.wait, 90) == -9
        second = bench.worker(ACME_KEY="sk-secret", VERITY_PAGE_EVENTS="50")
        await bench.wait_for_state("prod", "caught_up")
        # What comes later comes, too.
        entries += [entry(run, 1000, datetime.now(UTC))]
        await bench.wait_for_events(1001, connector="prod", platform="acme")
    published = await bench.events("prod", platform="acme")
    assert sorted(published, key=lambda e: int(e["event_id"].rpartition("-")[2])) == [
        record_of(given) for given in entries
    ]
    # The API has no permissions page: the snapshot says so, and the events go on.
    assert second.messages("snapshot.published")[-1]["is_complete"] is False
    for one in bench.workers:
        assert "sk-secret" not in one.log
