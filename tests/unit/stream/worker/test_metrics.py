"""What `/metrics` shows: what the statuses counted, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from documents import alert_rules, seen
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from verity_stream.status import METRICS, Histogram, Kind, State, Status
from verity_stream.worker.metrics import families, render

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def scraped(
    *statuses: Status, is_ready: bool = True, **mirrored: int
) -> dict[tuple[str, ...], float]:
    """The samples as Prometheus reads them: name, then the values of labels in their order."""
    text = render(families(statuses, mirrored, is_ready=is_ready, now=NOW)).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_count_of_a_status_is_shown_with_its_connector_and_platform() -> None:
    status = Status("c", "test", State.RUNNING)
    counters = {name: one for name, one in METRICS.items() if one.kind is Kind.COUNTER}
    for number, field in enumerate(counters, 1):
        setattr(status, field, number)
    samples = scraped(status)
    for number, metric in enumerate(counters.values(), 1):
        assert samples[f"{metric.name}_total", "c", "test"] == number


def test_a_time_is_shown_as_its_age_and_an_unknown_one_not_at_all() -> None:
    status = Status("c", "test", complete_through=NOW - timedelta(hours=1))
    samples = scraped(status)
    assert samples["verity_complete_through_age_seconds", "c", "test"] == 3600
    assert ("verity_last_success_age_seconds", "c", "test") not in samples
    assert ("verity_checkpoint_version", "c", "test") not in samples


def test_exactly_one_state_is_1() -> None:
    samples = scraped(Status("c", "test", State.BLOCKED))
    states = {key[3]: value for key, value in samples.items() if key[0] == "verity_connector_state"}
    assert states.keys() == set(State)
    assert [state for state, value in states.items() if value] == ["blocked"]


def test_what_the_table_lacks_is_shown() -> None:
    samples = scraped(Status("c", "test", version=7), Status("d", "test", version=7), c=5)
    assert samples["verity_mirror_behind_versions", "c", "test"] == 2
    assert samples["verity_mirror_behind_versions", "d", "test"] == 7


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_worker_without_connectors_says_whether_it_is_ready(is_ready: bool) -> None:
    assert scraped(is_ready=is_ready) == {("verity_worker_ready",): float(is_ready)}


def test_a_label_is_text_whatever_stands_in_it() -> None:
    assert scraped(Status('c"\n\\', "test"))["verity_events_total", 'c"\n\\', "test"] == 0


@given(st.lists(st.lists(st.floats(-10, 100), max_size=20), max_size=5))
def test_a_histogram_counts_every_value_once_and_cumulatively(pages: list[list[float]]) -> None:
    status = Status("c", "test", lateness=Histogram((1.0, 10.0, 50.0)))
    for page in pages:
        status.lateness.observe(page)
    values = [value for page in pages for value in page]
    samples = scraped(status)
    name = "verity_event_lateness_seconds"
    for bound in (1.0, 10.0, 50.0):
        expected = sum(value <= bound for value in values)
        assert samples[f"{name}_bucket", "c", str(bound), "test"] == expected
    assert samples[f"{name}_count", "c", "test"] == len(values)
    assert samples[f"{name}_sum", "c", "test"] == pytest.approx(sum(values))
    quantile = status.lateness.quantile(0.99)
    assert (quantile is None) is (not values)
    if quantile is not None and quantile < 50:
        assert sum(value <= quantile for value in values) >= 0.99 * len(values)


# Dashboard and alerts.

OPS = Path(__file__).parents[4] / "ops"
ALERTS = ("SilentConnector", "LatenessAboveLookback", "GapRecorded", "Blocked", "Diverged")


def exported() -> set[str]:
    """Every name of a sample that a worker with a connector can show."""
    return {name for name, *_ in scraped(seen(NOW))}


def expressions() -> Iterator[str]:
    """Every query of the dashboard and of the rules."""
    dashboard = json.loads((OPS / "grafana" / "verity-stream.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard["templating"]["list"][1:]:
        yield variable["query"]["query"]
    for rule in alert_rules():
        yield rule["expr"]


def test_every_metric_that_the_dashboard_and_the_alerts_use_exists() -> None:
    used = {name for text in expressions() for name in re.findall(r"\bverity_[a-z0-9_]+", text)}
    assert used - exported() == set()
    unlooked = [
        metric.name
        for metric in METRICS.values()
        if metric.title is None
        and not used & {metric.name, f"{metric.name}_total", f"{metric.name}_bucket"}
    ]
    assert unlooked == [], "a metric that nobody looks at"


def test_every_query_names_only_labels_and_states_that_exist() -> None:
    labels = {"connector_id", "platform", "state", "le", "instance"}
    for text in expressions():
        for clause in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", text):
            assert {label.strip() for label in clause.split(",")} <= labels, text
        for selector in re.findall(r"\{([^}]*)\}", text):
            for label, value in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', selector):
                assert label in labels, text
                assert label != "state" or value in set(State), text
        assert text.count("(") == text.count(")"), text
        assert text.count("{") == text.count("}"), text


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in alert_rules()]
    assert len(set(names)) == len(names)
    assert {f"Verity{name}" for name in ALERTS} <= set(names)
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        said = rule["annotations"]
        assert said.keys() == {"summary", "description"}
        for text in said.values():
            assert re.fullmatch(r"\S.{20,}\.", text), rule["alert"]
        assert said["description"] not in said["summary"], rule["alert"]
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0m"))


def test_the_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads((OPS / "grafana" / "verity-stream.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
