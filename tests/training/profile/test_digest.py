"""What a trace says, in short: times add up, and count for the innermost of what was open."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.training.profile import digest
from launchyard.training.profile.tables import table_text

FACTS = {"first": 3, "last": 4, "rank": 1, "world_size": 2, "attempt": 0, "host": "here", "time": 0.0}


def event(name: str, ts: float, dur: float, cat: str = "cpu_op", **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 7, "tid": 7, "ts": ts, "dur": dur, "args": args}


def allocation(ts: float, n_bytes: int, total: int, kind: int = 0) -> dict[str, Any]:
    args = {"Bytes": n_bytes, "Total Allocated": total, "Device Type": kind}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 7, "tid": 7, "ts": ts, "args": args}


def named(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found}


def test_a_time_counts_for_the_innermost_operator_and_phase() -> None:
    events = [
        event("step 3", 0, 1000, digest.RANGE),
        event("forward_backward", 10, 800, digest.RANGE),
        event("module blocks.0.mlp", 20, 300, digest.RANGE),
        event("aten::linear", 30, 200),
        event("aten::addmm", 40, 150),
        allocation(50, 4096, 4096),
        event("module blocks.1.mlp", 330, 100, digest.RANGE),
        event("collective_wait", 500, 300, digest.RANGE),
    ]
    found = digest.summed(events)
    assert found["phases"] == {"forward_backward": 500e-6, "collective_wait": 300e-6}
    operators = named(found["operators"])
    assert operators["aten::linear"]["self_seconds"] == pytest.approx(50e-6)
    assert operators["aten::linear"]["seconds"] == pytest.approx(200e-6)
    assert (operators["aten::addmm"]["self_bytes"], operators["aten::linear"]["self_bytes"]) == (4096, 0)
    (modules,) = found["modules"]
    assert (modules["name"], modules["calls"], modules["seconds"]) == ("blocks.*.mlp", 2, pytest.approx(400e-6))
    assert found["memory"] and not found["device"]


def test_work_of_a_device_counts_for_the_operator_that_asked_for_it() -> None:
    """Kernels carry the id of their operator; there the longest on the device comes first."""
    events = [
        event("aten::mm", 0, 5, **{"External id": 1}),
        event("aten::add", 10, 50, **{"External id": 2}),
        event("module head", 0, 60, digest.RANGE),
        event("sm90_gemm", 100, 700, "kernel", **{"External id": 1}),
        event("copy", 900, 20, "gpu_memcpy", **{"External id": 2}),
        event("module head", 100, 820, digest.DEVICE_RANGE),
        event("nobody's", 0, 9, "kernel"),
    ]
    found = digest.summed(events)
    assert [(one["name"], one["device_seconds"]) for one in found["operators"]] == [
        ("aten::mm", pytest.approx(700e-6)),
        ("aten::add", pytest.approx(20e-6)),
    ]
    assert found["modules"][0]["device_seconds"] == pytest.approx(820e-6)
    assert "device ms" in table_text({**FACTS, **found})


@st.composite
def nested(draw: st.DrawFn, start: float = 0.0, length: float = 1024.0, depth: int = 0) -> list[dict[str, Any]]:
    """Operators within operators."""
    found = [event(draw(st.sampled_from("abc")), start, length)]
    if depth < 4 and draw(st.booleans()):
        half = length / 2
        for side in range(2):
            found += draw(nested(start + side * half, half, depth + 1))
    return found


@given(nested())
def test_own_times_sum_to_the_whole(events: list[dict[str, Any]]) -> None:
    operators = digest.summed(events)["operators"]
    assert sum(one["self_seconds"] for one in operators) == pytest.approx(1024e-6, rel=1e-3)
    assert sum(one["calls"] for one in operators) == len(events)
    assert all(one["self_seconds"] > -1e-9 for one in operators)


def test_the_files_that_it_writes(tmp_path: Path) -> None:
    """The trace keeps its events, and gets a name for its rank and a curve for its memory."""
    raw = tmp_path / "raw.json"
    process = {"ph": "M", "name": "process_name", "pid": 7, "tid": 0, "ts": 0, "args": {"name": "python"}}
    raw.write_text(json.dumps({"traceEvents": [process, event("aten::mm", 0, 5), allocation(1, 64, 64, kind=1)]}))
    assert digest.main(["", str(raw), str(tmp_path), json.dumps(FACTS)]) == 0
    with gzip.open(tmp_path / ".json.gz") as file:
        trace = json.load(file)
    assert trace["launchyard"] == FACTS and trace["distributedInfo"]["rank"] == 1
    first, *_, last = trace["traceEvents"]
    assert first["args"]["name"] == "rank 1 (here)"
    assert (last["ph"], last["name"], last["args"]) == ("C", "GPU memory", {"bytes": 64})
    assert not raw.exists() and "aten::mm" in (tmp_path / ".txt").read_text()
    assert json.loads((tmp_path / ".json").read_text())["operators"][0]["name"] == "aten::mm"
