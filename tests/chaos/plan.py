"""What happens to a run, as a pure function of a seed: who runs it, when it is killed, how its store fails.

Knows the names of instants, victims and faults, and nothing of how they are brought about.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

STEPS, EVERY, KEEP, BATCH = 48, 3, 2, 12
MOST_COMMITS = 5  # of an attempt; an instant that has not come by then is taken to be this one
MOST_JOBS = 14  # under chaos; then the run is left in peace

Place = Literal["s3", "local"]
Size = Literal["small", "large"]  # large: its state goes up in parts
Method = Literal["full", "lora", "qlora", "dpo"]  # lora and qlora from rows, dpo from pairs of answers
METHODS: tuple[Method, ...] = ("lora", "qlora", "dpo")
# workers: without an agent. agent: `launcher.node`. owner: the process that `launch` detaches. launch: `launch resume`.
Way = Literal["workers", "agent", "owner", "launch"]
# frozen: nobody is killed, all workers stop for as long as another attempt goes on, and then wake up.
Victim = Literal["worker", "workers", "agent", "tree", "frozen"]

# The instants of a kill, each with how often it may pass before it is taken: progress comes from that.
INSTANTS: dict[str, int] = {
    "start": 0,
    "rendezvous": 0,
    "load": 60,
    "download": 25,
    "step": 10,
    "stage": 150,
    "upload": 3,
    "commit": 3,
    "committed": 2,
    "latest": 2,
    "rows": 3,
    "manifest deleted": 2,
    "shard deleted": 3,
    "outcome": 0,
    "random": 0,
}
CLAIMS = ("claim", "claimed")  # of the owner only

# What a store does wrong, each with whether it needs a run directory in a store; the data always lies in one.
FAULTS: dict[str, bool] = {
    "500 burst": False,
    "503 burst": False,
    "answer lost": True,
    "manifest's answer lost": True,
    "reset up": True,
    "reset down": False,
    "truncated body": False,
    "body shorter than its object": False,
    "flipped bit in a chunk": False,
    "flipped bit in a checkpoint": True,
    "flipped bit in a manifest": True,
    "stall": False,
    "slow": False,
    "403 for a while": True,
    "listing lags": True,
    "gone for a while": False,
}


@dataclass(frozen=True)
class Kill:
    """`after`: how many such instants pass before; for `random`, hundredths of a second since the start."""

    instant: str
    victim: Victim
    after: int


@dataclass(frozen=True)
class Trouble:
    """A fault of the store for `times` requests, after `skip` that it might have hit."""

    fault: str
    times: int
    skip: int


@dataclass(frozen=True)
class Job:
    """One start of the run, and all that happens to it. More than one kill only where somebody starts anew."""

    way: Way
    nproc: int
    kills: tuple[Kill, ...]
    troubles: tuple[Trouble, ...]


@dataclass(frozen=True)
class Case:
    seed: int
    place: Place
    size: Size
    resized: bool
    jobs: tuple[Job, ...]
    method: Method = "full"

    @property
    def says(self) -> str:
        """In a few words."""
        workers = "1-4" if self.resized else str(self.jobs[0].nproc)
        return f"{self.size} {self.method} run in {self.place}, {workers} workers"


def draw(seed: int) -> Case:
    rng = random.Random(f"chaos {seed}")
    place: Place = "local" if seed % 4 == 3 else "s3"
    method: Method = METHODS[seed // 2 % 3] if seed % 2 else "full"
    size: Size = "large" if place == "s3" and seed % 3 == 0 and method == "full" else "small"
    resized = seed // 2 % 2 == 1 if place == "s3" else seed // 4 % 2 == 1
    fixed = rng.choices([1, 2, 3, 4], [5, 5, 1, 1])[0]
    sizes = [rng.choices([1, 2, 3, 4], [5, 5, 2, 1])[0] if resized else fixed for _ in range(MOST_JOBS)]
    early = [name for name in INSTANTS if name != "outcome"]  # that one comes when all steps are done
    instants = iter([*rng.sample(early, len(early)), *deal(rng, [*INSTANTS], MOST_JOBS * 3)])
    faults = iter(deal(rng, [name for name, remote in FAULTS.items() if place == "s3" or not remote], MOST_JOBS * 14))
    jobs = [draw_job(rng, nproc, place, instants, faults) for nproc in sizes]
    return Case(seed, place, size, resized, tuple(jobs), method)


def deal(rng: random.Random, names: list[str], count: int) -> list[str]:
    """At least `count` names, in rounds: none comes again before all have come."""
    dealt: list[str] = []
    while len(dealt) < count:
        dealt += rng.sample(names, len(names))
    return dealt


def draw_job(rng: random.Random, nproc: int, place: Place, instants: Iterator[str], faults: Iterator[str]) -> Job:
    way: Way = rng.choices(["workers", "agent", "owner", "launch"], [5, 4, 3, 1])[0]  # type: ignore[assignment]
    kills = [draw_kill(rng, way, nproc, next(instants)) for _ in range(3 if way == "owner" else 1)]
    if way in ("owner", "launch"):  # it would start anew until the run has completed
        kills[-1] = replace(kills[-1], victim="tree" if way == "launch" else rng.choice(["agent", "tree"]))
        if rng.random() < 0.3:
            kills = [
                Kill(rng.choice(CLAIMS), "agent", 0) if place == "s3" else Kill("random", "tree", rng.randrange(150))
            ]
    count = rng.randint(8, 14) if place == "s3" else rng.randint(2, 5)
    troubles = [draw_trouble(rng, next(faults)) for _ in range(count)]
    return Job(way, nproc, tuple(kills), tuple(troubles))


def draw_kill(rng: random.Random, way: Way, nproc: int, instant: str) -> Kill:
    if way == "workers":
        victim: Victim = "frozen" if rng.random() < 0.4 and instant not in ("start", "rendezvous") else "workers"
    else:
        victim = rng.choices(["worker", "workers", "agent", "tree"], [2 if nproc > 1 else 5, 3, 4, 2])[0]  # type: ignore[assignment]
    most = INSTANTS[instant] * (nproc if instant == "step" else 1)  # each rank tells of each step
    after = rng.randrange(1000) if instant == "random" else rng.randint(0, most)
    return Kill(instant, victim, after)


def draw_trouble(rng: random.Random, fault: str) -> Trouble:
    times = rng.randint(2, 6) if "burst" in fault else 1
    return Trouble(fault, times, rng.randint(0, 15))
