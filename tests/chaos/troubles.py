"""The faults of a store by name, brought about through the fault proxy; see plan.FAULTS."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.chaos.instants import MANIFEST, SHARD
from tests.chaos.plan import Trouble
from tests.support.faultproxy import FaultProxy, Rule
from tests.support.faults import (
    Answer,
    Fault,
    Flip,
    Match,
    Request,
    Reset,
    Slow,
    Stall,
    Truncate,
    snapshot,
    where,
    writes,
)
from tests.support.store import Bucket

CHUNK = r"^data/.*\.bin$"
HASHED = rf"{CHUNK}|{SHARD}"
SECONDS = 1.5  # of what lasts a while; far below the retry budget of a run


def anything(_: Request) -> bool:
    return True


def simple(trouble: Trouble, rng: random.Random, *, remote: bool) -> tuple[Fault, Match] | None:
    """A fault of single requests, and which; None for one that lasts a while."""
    hashed = where(method="GET", key=HASHED if remote else CHUNK)
    share = rng.random()
    return {
        "500 burst": (Answer(500), anything),
        "503 burst": (Answer(503), anything),
        "answer lost": (Answer(500, done=True), writes),
        "manifest's answer lost": (Answer(503, done=True), where(method="PUT", key=MANIFEST)),
        "reset up": (Reset(up=share), where(method="PUT", key=r"\.safetensors$|\.jsonl?$")),
        "reset down": (Reset(down=share), hashed),
        "truncated body": (Truncate(share), hashed),
        "body shorter than its object": (Truncate(share, lie=True), hashed),
        "flipped bit in a chunk": (Flip(share), where(method="GET", key=CHUNK)),
        "flipped bit in a checkpoint": (Flip(share), where(method="GET", key=SHARD)),
        "flipped bit in a manifest": (Flip(share), where(method="GET", key=MANIFEST)),
        "stall": (Stall(SECONDS, rng.choice(["before", "mid-body", "after"])), anything),
        "slow": (Slow(up=2e6, down=2e5), anything),
    }.get(trouble.fault)


@dataclass
class Bringer:
    """Brings troubles over one proxy, and counts which of them were met."""

    proxy: FaultProxy
    bucket: Bucket
    remote: bool

    def __post_init__(self) -> None:
        self._armed: list[tuple[Trouble, Rule]] = []
        self._timers: list[threading.Timer] = []

    def arm(self, trouble: Trouble, rng: random.Random) -> None:
        found = simple(trouble, rng, remote=self.remote)
        if found is not None:
            skip = trouble.skip // 8 if "manifest" in trouble.fault else trouble.skip
            rule = self.proxy.fault(*found, times=trouble.times, skip=skip)
        else:
            begin = {"403 for a while": self._refuse, "listing lags": self._lag, "gone for a while": self._leave}
            committed = where(method="PUT", key=MANIFEST) if self.remote else where(method="GET", key=CHUNK)
            rule = self.proxy.on(committed, "after", lambda _: begin[trouble.fault](), skip=trouble.skip // 8)
        self._armed.append((trouble, rule))

    def disarm(self) -> Iterator[tuple[str, int]]:
        """(fault, how many requests it has hit) of what was met since the last time; the store is faultless now."""
        for timer in self._timers:
            timer.cancel()
        self.proxy.clear()
        self.proxy.accept()
        armed, self._armed, self._timers = self._armed, [], []
        yield from ((trouble.fault, rule.hits) for trouble, rule in armed if rule.hits)

    def _later(self, action: Callable[[], object]) -> None:
        timer = threading.Timer(SECONDS, action)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _refuse(self) -> None:
        rule = self.proxy.fault(Answer(403), anything)
        self._later(rule.off)

    def _lag(self) -> None:
        client = self.bucket.server.client()
        try:
            self.proxy.lag(snapshot(client, self.bucket.name))
        finally:
            client.close()
        self._later(lambda: self.proxy.lag(None))

    def _leave(self) -> None:
        self.proxy.refuse()
        self._later(self.proxy.accept)
