"""Where each instant of a kill is: at a request on its way to the store, or at a beacon of a worker."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.beacons import Beacon
from tests.support.faults import Match, When, where

SHARD = r"/step-\d+/.*\.safetensors$"
MANIFEST = r"/step-\d+/manifest\.json$"


@dataclass(frozen=True)
class Hook:
    """A request, and how far it has got."""

    match: Match
    when: When


# For a run directory in a store. The data is in one in any case.
HOOKS = {
    "load": Hook(where(method="GET", key=SHARD), "mid-body"),
    "upload": Hook(where(method="PUT", key=SHARD), "mid-body"),
    "commit": Hook(where(method="PUT", key=MANIFEST), "before"),
    "committed": Hook(where(method="PUT", key=MANIFEST), "after"),
    "latest": Hook(where(method="PUT", key=r"/latest\.json$"), "before"),
    "rows": Hook(where(method="PUT", key=r"/metrics/"), "mid-body"),
    "manifest deleted": Hook(where(method="DELETE", key=MANIFEST), "after"),
    "shard deleted": Hook(where(method="DELETE", key=SHARD), "after"),
    "outcome": Hook(where(method="PUT", key=r"/\d+/outcome\.json$"), "before"),
    "claim": Hook(where(method="PUT", key=r"/job\.json$"), "before"),
    "claimed": Hook(where(method="PUT", key=r"/job\.json$"), "after"),
}
DOWNLOAD = Hook(where(method="GET", key=r"^data/.*\.bin$"), "mid-body")

# What a worker tells, wherever its run directory is.
BEACONS = {"start": "^start$", "rendezvous": "^(rendezvous|start)$", "step": "^step$", "stage": "^stage$"}
# What it tells of the files of a local run directory; how many of them come for each one of a store.
LOCAL_BEACONS = {
    "load": (rf"^before read_into .*{SHARD}", 1),
    "upload": (rf"^extend .*{SHARD}", 60),
    "commit": (rf"^before create .*{MANIFEST}", 1),
    "committed": (rf"^after create .*{MANIFEST}", 1),
    "latest": (r"^before write .*/latest\.json$", 1),
    "rows": (r"^append metrics/", 10),
    "manifest deleted": (rf"^after remove .*{MANIFEST}", 1),
    "shard deleted": (rf"^after remove .*{SHARD}", 1),
    "outcome": (r"^before write .*/\d+/outcome\.json$", 1),
}


def hook_of(instant: str, place: str) -> Hook | None:
    """None if no request marks this instant."""
    if instant == "download":
        return DOWNLOAD
    return HOOKS.get(instant) if place == "s3" else None


def beacon_of(instant: str, attempt: int) -> tuple[Callable[[Beacon], bool], int]:
    """What to watch for in this attempt or a later one, and by how much more often it comes than in a store."""
    pattern, factor = LOCAL_BEACONS[instant] if instant not in BEACONS else (BEACONS[instant], 1)
    return lambda beacon: beacon.attempt >= attempt and re.search(pattern, beacon.name) is not None, factor
