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
from tests.chaos.plan import draw
from tests.chaos.runs import References
from tests.store import Bucket

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


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
