"""Metrics for Prometheus.

Counters are counted where a result is written. Gauges are not kept: whoever asks for the metrics reads them from the
objects that know, so that nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._operations = Counter(
            "mint_operations", "Operations whose result is written.", ["kind", "outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "mint_operation_seconds",
            "From the moment an operation is accepted until its result is written.",
            ["kind"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._tokens = Counter(
            "mint_tokens",
            "Tokens of finished operations: of passes, of prompts, drawn.",
            ["use"],
            registry=self._registry,
        )

    def finished(self, kind: str, outcome: str, seconds: float) -> None:
        """An operation's result is written, so long after it was accepted."""
        self._operations.labels(kind, outcome).inc()
        self._seconds.labels(kind).observe(seconds)

    def tokens(self, use: str, count: int) -> None:
        """A finished operation used so many tokens."""
        self._tokens.labels(use).inc(count)

    def exposition(self, gauges: Iterable[GaugeMetricFamily]) -> bytes:
        """All there is, in Prometheus's text format."""
        moment = CollectorRegistry()
        moment.register(_Gauges(gauges))
        return generate_latest(self._registry) + generate_latest(moment)


def gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    """One number of this moment."""
    return GaugeMetricFamily(name, what, value)


def gauges_by(name: str, what: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """Numbers of this moment, one for each value of a label."""
    family = GaugeMetricFamily(name, what, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class _Gauges(Collector):
    def __init__(self, gauges: Iterable[GaugeMetricFamily]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._gauges
