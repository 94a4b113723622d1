"""A run in a store, whose rows wait for seconds: what memory goes on from is never ahead of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchyard.launcher.agent.memory import AgentMemory
from launchyard.training.spec import DataSpec
from tests.support.small_runs import make_run, run_workers, write_data
from tests.support.store import Bucket
from tests.training.checkpoint.test_memory_runs import NEVER, RECIPE, assert_same_run, kill_when, started
from tests.training.checkpoint.test_memory_runs import memory as memory

pytestmark = pytest.mark.s3


def test_rows_that_had_not_reached_the_store_are_there(s3: Bucket, memory: AgentMemory, tmp_path: Path) -> None:
    data: DataSpec = write_data(tmp_path / "data")
    expected = make_run(tmp_path / "whole", data, RECIPE)
    run_workers(expected, 1, NEVER)
    memory.begin(1)
    assert memory.newest_step() is None
    run = make_run(f"{s3.url}/run", data, RECIPE | {"checkpoint.snapshot_steps": 1})
    waiting = []
    for at in (13, 40):
        kill_when(run, 1, lambda at=at: (memory.newest_step() or 0) >= at)
        waiting.append(len(list(run.rows("steps"))) < (memory.newest_step() or 0))
    assert any(waiting), "rows had to be on their way at a kill"
    run_workers(run, 1)
    assert started(run)["source"] == "memory"
    assert_same_run(run, expected)
    assert [row["step"] for attempt in run.attempts() for row in run.attempt_rows("steps", attempt)][:13] == [
        *range(1, 14)
    ]
