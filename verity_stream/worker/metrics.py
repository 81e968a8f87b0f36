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

from verity_stream.status import METRICS, Histogram, Kind, State, Status, utc_now
from verity_stream.status import Metric as Declared

# The charset is left out: aiohttp refuses one in a content type.
CONTENT_TYPE = "text/plain; version=0.0.4"

LABELS = ("connector_id", "platform")


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
    for field, metric in METRICS.items():
        values = ((one, getattr(one, field)) for one in statuses)
        found.append(_family(metric, values, now))
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


def _family(metric: Declared, values: Iterable[tuple[Status, Any]], now: datetime) -> Metric:
    if metric.kind is Kind.COUNTER:
        counter = CounterMetricFamily(metric.name, metric.text, labels=LABELS)
        for status, count in values:
            counter.add_metric(_labels(status), count)
        return counter
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.text, labels=LABELS)
        for status, seen in values:
            histogram.add_metric(_labels(status), _buckets(seen), seen.sum)
        return histogram
    if metric.kind is Kind.AGE:
        values = (
            (status, None if at is None else (now - at).total_seconds()) for status, at in values
        )
    return _gauge(metric.name, metric.text, values)


def _gauge(name: str, text: str, values: Iterable[tuple[Status, Any]]) -> GaugeMetricFamily:
    """A gauge without those that have no value: 0 would say something else."""
    gauge = GaugeMetricFamily(name, text, labels=LABELS)
    for status, value in values:
        if value is not None:
            gauge.add_metric(_labels(status), float(value))
    return gauge


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    counted = 0
    buckets = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        counted += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(counted)))
    return buckets
