"""Metrics in Prometheus' format, made from the connectors' statuses at the moment of asking.

There is no second bookkeeping: a status counts, and a scrape shows what it counted. Counts begin
when a worker starts; a connector is shown by the worker that owns it, and by no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from verity_stream.status import Histogram, State, Status, utc_now

# The charset is left out: aiohttp refuses one in a content type.
CONTENT_TYPE = "text/plain; version=0.0.4"

LABELS = ("connector_id", "platform")

COUNTERS: Mapping[str, tuple[str, str]] = {
    "verity_events": ("event_count", "Events published."),
    "verity_pages": ("page_count", "Pages committed, each in a transaction of its own."),
    "verity_dead_letters": ("dead_count", "Records that could not be published as events."),
    "verity_gaps": ("gap_count", "Stretches that are known to be missing, recorded as data."),
    "verity_repeats_dropped": ("repeat_count", "Events dropped because their id was published."),
    "verity_retries": ("retry_count", "Relays that ended with an error and are started again."),
    "verity_fenced": ("fenced_count", "Relays that ended because another owns the connector."),
    "verity_database_behind": (
        "behind_count",
        "Starts that found Postgres more than a page behind the topic.",
    ),
    "verity_topic_behind": (
        "topic_behind_count",
        "Starts that found the topic without checkpoints that were published.",
    ),
    "verity_other_cluster": (
        "other_cluster_count",
        "Starts that found the checkpoints of another Kafka cluster.",
    ),
    "verity_ids_forgotten": (
        "forgotten_count",
        "Ids forgotten early because the seen window was full: their repeats can pass.",
    ),
    "verity_ids_lost": (
        "lost_count",
        "Ids that the log of ids lacked at a start: those that the raw topics lack, too, can pass.",
    ),
}
GAUGES: Mapping[str, tuple[str, str]] = {
    "verity_checkpoint_version": ("version", "Version of the checkpoint, one more a page."),
    "verity_seen_window_ids": ("seen_count", "Event ids that are remembered."),
    "verity_lookback_seconds": ("lookback_seconds", "How late an event may be and is not missed."),
    "verity_poll_interval_seconds": ("poll_seconds", "How often the source is asked."),
}
AGES: Mapping[str, tuple[str, str]] = {
    "verity_last_success_age_seconds": (
        "last_success_at",
        "Since a page was committed or the source had nothing new.",
    ),
    "verity_last_event_age_seconds": ("last_event_at", "Since an event was published."),
    "verity_complete_through_age_seconds": (
        "complete_through",
        "Since the time up to which every event is out; absent where the source can't tell.",
    ),
}
HISTOGRAMS: Mapping[str, tuple[str, str]] = {
    "verity_event_lateness_seconds": (
        "lateness",
        "From when an event occurred to when it was first seen, backfills left out.",
    ),
    "verity_commit_seconds": (
        "commit_seconds",
        "From the beginning of a page's transaction to its commit.",
    ),
}


def families(
    statuses: Iterable[Status],
    mirrored: Mapping[str, int],
    *,
    is_ready: bool,
    now: datetime | None = None,
) -> list[Metric]:
    """Every metric of a worker, also those without a value yet, so that queries find them.

    Args:
        statuses: Of the connectors that this worker owns.
        mirrored: The versions in the Faust table, by connector id.
        is_ready: Whether the worker does its work.
        now: The present.
    """
    now = now or utc_now()
    statuses = sorted(statuses, key=lambda status: status.connector_id)
    found: list[Metric] = []
    for name, (field, text) in COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=LABELS)
        for status in statuses:
            counter.add_metric(_labels(status), getattr(status, field))
        found.append(counter)
    for name, (field, text) in GAUGES.items():
        found.append(_gauge(name, text, ((one, getattr(one, field)) for one in statuses)))
    for name, (field, text) in AGES.items():
        ages = ((one, _age(getattr(one, field), now)) for one in statuses)
        found.append(_gauge(name, text, ages))
    for name, (field, text) in HISTOGRAMS.items():
        histogram = HistogramMetricFamily(name, text, labels=LABELS)
        for status in statuses:
            seen: Histogram = getattr(status, field)
            histogram.add_metric(_labels(status), _buckets(seen), seen.sum)
        found.append(histogram)
    states = GaugeMetricFamily(
        "verity_connector_state", "1 for the state that it is in.", labels=(*LABELS, "state")
    )
    for status in statuses:
        for state in State:
            states.add_metric((*_labels(status), str(state)), float(status.state is state))
    found.append(states)
    behind = (
        (one, None if one.version is None else one.version - mirrored.get(one.connector_id, 0))
        for one in statuses
    )
    text = "Versions that the Faust table lacks; more than the pages in flight is a divergence."
    found.append(_gauge("verity_mirror_behind_versions", text, behind))
    ready = GaugeMetricFamily("verity_worker_ready", "Whether this worker runs its connectors.")
    ready.add_metric((), float(is_ready))
    found.append(ready)
    return found


def render(found: Iterable[Metric]) -> bytes:
    """The families as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(_Collector(found))
    return generate_latest(registry)


class _Collector:
    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = list(found)

    def collect(self) -> Iterable[Metric]:
        return self._found


def _labels(status: Status) -> tuple[str, str]:
    return status.connector_id, status.platform


def _gauge(name: str, text: str, values: Iterable[tuple[Status, Any]]) -> GaugeMetricFamily:
    """A gauge without those that have no value: 0 would say something else."""
    gauge = GaugeMetricFamily(name, text, labels=LABELS)
    for status, value in values:
        if value is not None:
            gauge.add_metric(_labels(status), float(value))
    return gauge


def _age(at: datetime | None, now: datetime) -> float | None:
    return None if at is None else (now - at).total_seconds()


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    counted = 0
    buckets = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        counted += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(counted)))
    return buckets
