"""How the command line shows connectors: a metric with a title is in every view of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from verity_stream.cli.connectors import connector_row, metric_lines, show_connectors
from verity_stream.status import LATENESS_BOUNDS, METRICS, Kind, Status, columns_of, reported

AT = datetime.now(UTC) - timedelta(hours=5)
SHOWN = {name: metric for name, metric in METRICS.items() if metric.title is not None}


def row(**known: Any) -> dict[str, Any]:
    """A connector of which the database knows what a status of it reported, and this."""
    status = Status("c", "test")
    for number, (name, metric) in enumerate(METRICS.items(), 1100):
        if metric.kind is Kind.AGE:
            setattr(status, name, AT)
        elif metric.kind is Kind.COUNTER:
            setattr(status, name, number)
    status.lateness.observe([2.0] * 98 + [50.0] * 2)
    found = {"worker": "w", "reported_at": AT, "complete_through": AT, **reported(status), **known}
    return connector_row("c", {}, {"c": found})


def test_every_metric_with_a_title_is_in_the_json() -> None:
    found = row()
    for name, metric in SHOWN.items():
        values = [found[column] for column in columns_of(name)]
        assert None not in values, metric.title
    assert (found["lateness_p50_seconds"], found["lateness_p99_seconds"]) == (5.0, 60.0)


def test_every_metric_with_a_title_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    found = row()
    show_connectors([found])
    said = capsys.readouterr().out
    for name, metric in SHOWN.items():
        assert f"{metric.title} " in said, "it is folded, or not there"
        if metric.kind is Kind.COUNTER:
            assert str(found[name]) in said, metric.title
    assert said.count("5 h ago") >= 3
    assert "0:00:05 / 0:01:00" in said


def test_every_metric_with_a_title_has_its_line_in_detail() -> None:
    found = row()
    lines = metric_lines(found)
    for name, metric in SHOWN.items():
        if metric.kind is not Kind.HISTOGRAM:
            assert lines[str(metric.title)] == found[name]
    assert lines["late by, p50"] == "at most 5 s"
    assert lines["late by, p99"] == "at most 60 s"
    last = LATENESS_BOUNDS[-1]
    assert metric_lines(row(lateness_p99_seconds=last))["late by, p99"] == f"{last:g} s or more"


def test_of_a_connector_that_never_ran_counts_are_0_and_all_else_is_unknown() -> None:
    found = connector_row("c", {}, {})
    assert {found[name] for name, one in SHOWN.items() if one.kind is Kind.COUNTER} == {0}
    assert "late by, p50" not in metric_lines(found)
    assert found["last_success_at"] is None
    show_connectors([found])
