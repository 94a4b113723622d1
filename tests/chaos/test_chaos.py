"""No fault loses, repeats or corrupts anything: a run under kills and store faults is the run that had none.

`make test-chaos` plays all seeds; `make test-chaos SEEDS=17` plays one again. What happens is a function of
the seed (tests/chaos/plan.py); when exactly, of requests and beacons rather than of luck.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import Harness
from tests.chaos.plan import Case, Job, Kill, Place, draw
from tests.chaos.runs import References
from tests.support.store import Bucket

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def one_worker(kill: Kill) -> Job:
    return Job("workers", 1, (kill,), ())


# What has been seen to go wrong once, or went unnoticed when the product was broken on purpose.
DIRECTED = {
    "a commit arrives after the next attempt has swept, gone on and died": (
        one_worker(Kill("commit", "frozen", 2)),
        one_worker(Kill("step", "workers", 1)),
        one_worker(Kill("committed", "workers", 1)),
    ),
    "an attempt wakes up between its commits, and goes on": (
        one_worker(Kill("step", "frozen", 12)),
        one_worker(Kill("committed", "workers", 2)),
    ),
}


@pytest.mark.parametrize("place", ["s3", "local"])
@pytest.mark.parametrize("what", DIRECTED)
def test_it_survives_this_too(what: str, place: Place, s3: Bucket, references: References, tmp_path: Path) -> None:
    with Harness(Case(0, place, "small", False, DIRECTED[what]), tmp_path, s3, references) as harness:
        harness.play()
        assert harness.tally.victims == {"frozen": 1, "workers": len(DIRECTED[what]) - 1}


def test_a_run_survives(seed: int, s3: Bucket, references: References, tmp_path: Path, record_property: Any) -> None:
    case, began = draw(seed), time.monotonic()
    with Harness(case, tmp_path, s3, references) as harness:
        try:
            harness.play()
        except BaseException as error:
            error.add_note(f"seed {seed}, a {case.says}; again: make test-chaos SEEDS={seed}")
            raise
        finally:
            record_property("chaos", json.dumps(harness.tally.to_json()))
            count, seconds = harness.tally.faults.total(), time.monotonic() - began
            said = f"seed {seed}, a {case.says}: {count} faults in {harness.tally.attempts} attempts, {seconds:.0f} s"
            record_property("said", said)
