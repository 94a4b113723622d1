"""A worker's series on an HTTP endpoint of its own, for Prometheus.

A step only stores numbers; a scrape does its work in a thread of its own. Takes the list of series from
training/telemetry/metric_table.py, and knows nothing of their meaning.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from launchyard.training.telemetry.buckets import Buckets
from launchyard.training.telemetry.metric_table import METRICS, STATES, Metric

LAST_SCRAPE_SECONDS = 20.0  # at the end, for a Prometheus that has been coming
FORGOTTEN_SECONDS = 120.0  # one that has not come for so long will not come any more
Labels = tuple[str, ...]


class Exporter:
    """All series of one worker; a port of 0 takes a free one. `url` is its address, if it is enabled.

    Values of a series that this rank does not report are ignored. Safe for one thread per series.
    """

    def __init__(self, *, rank: int, host: str | None, port: int = 0) -> None:
        """`host` None disables it: it reports no series, and nothing listens."""
        self.enabled = host is not None
        self.url: str | None = None
        self._rank = str(rank)
        self._metrics = {
            metric.name: metric
            for metric in METRICS
            if self.enabled and metric.source == "trainer" and (rank == 0 or metric.scope == "rank")
        }
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in self._metrics}
        self._buckets: dict[str, dict[Labels, Buckets]] = {name: {} for name in self._metrics}
        self._callbacks: list[Callable[[Exporter], None]] = []
        self._scraped: list[float] = []  # the last two times
        self._news = threading.Event()
        for metric in self._metrics.values():
            if metric.kind == "counter" and not metric.labels:
                self.add(metric.name, 0.0)  # there from the beginning, so that its first increase is one
        if host is not None:
            self._listen(host, port)

    def _listen(self, host: str, port: int) -> None:
        import prometheus_client as prom

        prom.disable_created_metrics()
        registry = prom.CollectorRegistry()
        registry.register(self)
        self._server, self._thread = prom.start_http_server(port, addr=host, registry=registry)
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    # -- reports of a worker -----------------------------------------------------------------------------------------
    def _labels(self, name: str, labels: dict[str, str]) -> Labels:
        names = self._metrics[name].labels
        return tuple(self._rank if label == "rank" else labels[label] for label in names) if names else ()

    def set(self, name: str, value: float, **labels: str) -> None:
        """A gauge. The label `rank` is this worker's, here and below."""
        if name in self._metrics:
            self._values[name][self._labels(name, labels)] = value

    def count(self, name: str, value: float, **labels: str) -> None:
        """A counter that is counted elsewhere, and never falls."""
        if name in self._metrics:
            values = self._values[name]
            key = self._labels(name, labels)
            values[key] = max(values.get(key, 0.0), value)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        if name in self._metrics:
            values = self._values[name]
            key = self._labels(name, labels)
            values[key] = values.get(key, 0.0) + amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        if name in self._metrics:
            key = self._labels(name, labels)
            found = self._buckets[name].get(key)
            if found is None:
                found = self._buckets[name][key] = Buckets(self._metrics[name].buckets)
            found.add(value)

    def show(self, name: str, buckets: Buckets) -> None:
        """A histogram that is filled elsewhere."""
        if name in self._metrics:
            self._buckets[name][()] = buckets

    def state(self, state: str) -> None:
        if "trainer_state" in self._metrics:
            self._values["trainer_state"] = {(one,): float(one == state) for one in STATES}

    def row(self, row: dict[str, Any], *, tokens: int, flops: float, mfu: float | None) -> None:
        """The numbers of one finished step."""
        if not self.enabled:
            return
        values = self._values
        values["trainer_last_step_timestamp_seconds"][(self._rank,)] = row["time"]
        if "trainer_step" not in values:
            return
        for name, key in (
            ("trainer_step", "step"),
            ("trainer_tokens_seen", "tokens_seen"),
            ("trainer_loss", "loss"),
            ("trainer_grad_norm", "grad_norm"),
            ("trainer_learning_rate", "lr"),
        ):
            if row[key] is not None:
                values[name][()] = row[key]
        values["trainer_tokens_total"][()] += tokens
        values["trainer_labels_total"][()] += row["labels"]
        values["trainer_model_flops_total"][()] += flops
        if mfu is not None:
            values["trainer_mfu_ratio"][()] = mfu
        self.observe("trainer_step_duration_seconds", row["step_seconds"])

    def before_scrapes(self, callback: Callable[[Exporter], None]) -> None:
        """Have `callback` called before each scrape, in its thread, to set values that are only read then."""
        self._callbacks.append(callback)

    # -- collection --------------------------------------------------------------------------------------------------
    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        for callback in list(self._callbacks):
            callback(self)
        for name, metric in self._metrics.items():
            found = family_of(metric, dict(self._values[name]), dict(self._buckets[name]))
            if found is not None:
                yield found
        self._scraped = [*self._scraped[-1:], time.monotonic()]
        self._news.set()

    # -- the end -----------------------------------------------------------------------------------------------------
    def last_scrape(self, seconds: float = LAST_SCRAPE_SECONDS) -> bool:
        """Wait for an active Prometheus to scrape the last numbers. Returns True if it did."""
        if not self.enabled or not self._scraped or time.monotonic() - self._scraped[-1] > FORGOTTEN_SECONDS:
            return False
        self._news.clear()
        usual = self._scraped[-1] - self._scraped[0] if len(self._scraped) > 1 else seconds
        return self._news.wait(min(seconds, 1.5 * usual + 0.5))

    def close(self) -> None:
        if not self.enabled:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def family_of(metric: Metric, values: dict[Labels, float], buckets: dict[Labels, Buckets]) -> Any:
    """The series as prometheus_client's type; None while it has no value."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    if metric.kind == "histogram":
        if not buckets:
            return None
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, found in buckets.items():
            histogram.add_metric(labels, *_cumulated(found))
        return histogram
    if not values:
        return None
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _cumulated(found: Buckets) -> tuple[list[tuple[str, float]], float]:
    counts = list(found.counts)
    below = 0
    rows = []
    for bound, count in zip((*found.bounds, float("inf")), counts, strict=True):
        below += count
        rows.append(("+Inf" if bound == float("inf") else str(bound), float(below)))
    return rows, found.total
