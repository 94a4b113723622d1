"""Series of a server for Prometheus, each beside the name that vLLM gives it, so that its dashboards show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from launchyard.model.serve.engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300, 600)
_Series = TypeVar("_Series", Counter, Gauge, Histogram)
_PREFIXES = ("launchyard_serve_", "vllm:")


class _Both:
    """One series under two names."""

    def __init__(self, series: Iterable[Counter | Gauge | Histogram]) -> None:
        self._series = list(series)

    def inc(self, amount: float = 1) -> None:
        for one in self._series:
            assert isinstance(one, Counter)
            one.inc(amount)

    def set(self, value: float) -> None:
        for one in self._series:
            assert isinstance(one, Gauge)
            one.set(value)

    def observe(self, seconds: float) -> None:
        for one in self._series:
            assert isinstance(one, Histogram)
            one.observe(seconds)


class Measures:
    """All series carry the label model_name."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self.running = self._gauge("num_requests_running", "Texts that have a slot")
        self.waiting = self._gauge("num_requests_waiting", "Texts that wait for a slot")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were read")
        self.new_tokens = self._counter("generation_tokens", "Tokens that were made")
        self.asked_tokens = self._counter("prefix_cache_queries", "Tokens of prompts that were looked for in a cache")
        self.reused_tokens = self._counter("prefix_cache_hits", "Tokens of prompts that lay in a cache already")
        self.refused = self._counter("requests_refused", "Requests that found the queue full", prefixes=_PREFIXES[:1])
        self.first_token = self._histogram("time_to_first_token_seconds", "From the request to its first token")
        self.between_tokens = self._histogram("inter_token_latency_seconds", "From one token of a text to the next")
        self.whole = self._histogram("e2e_request_latency_seconds", "From the request to its last token")
        self._ends = self._ends_by_reason()

    def count_step(self, engine: Engine, before: tuple[int, int, int]) -> None:
        """before: the counts of prompt, reused and new tokens before the step."""
        prompt, reused, new = before
        self.prompt_tokens.inc(engine.counts.prompt - prompt)
        self.reused_tokens.inc(engine.counts.reused - reused)
        self.asked_tokens.inc(engine.counts.prompt - prompt + engine.counts.reused - reused)
        self.new_tokens.inc(engine.counts.new - new)

    def look(self, engine: Engine, n_open: int) -> bytes:
        """The page that Prometheus reads."""
        self.running.set(engine.n_running)
        self.waiting.set(max(0, n_open - engine.n_running))
        return generate_latest(self._registry)

    def count_end(self, reason: str) -> None:
        self._ends[reason].inc()

    def _gauge(self, name: str, help: str) -> _Both:
        return _Both(
            self._labelled(Gauge(prefix + name, help, ["model_name"], registry=self._registry)) for prefix in _PREFIXES
        )

    def _counter(self, name: str, help: str, *, prefixes: Sequence[str] = _PREFIXES) -> _Both:
        return _Both(
            self._labelled(Counter(prefix + name, help, ["model_name"], registry=self._registry)) for prefix in prefixes
        )

    def _histogram(self, name: str, help: str) -> _Both:
        return _Both(
            self._labelled(Histogram(prefix + name, help, ["model_name"], buckets=_SECONDS, registry=self._registry))
            for prefix in _PREFIXES
        )

    def _ends_by_reason(self) -> dict[str, _Both]:
        series = [
            Counter(
                f"{prefix}request_success",
                "Texts that ended",
                ["model_name", "finished_reason"],
                registry=self._registry,
            )
            for prefix in _PREFIXES
        ]
        return {
            reason: _Both(one.labels(model_name=self._model_name, finished_reason=reason) for one in series)
            for reason in ("stop", "length", "abort")
        }

    def _labelled(self, series: _Series) -> _Series:
        labelled: _Series = series.labels(model_name=self._model_name)
        return labelled
