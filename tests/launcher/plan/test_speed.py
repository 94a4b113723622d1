"""A plan says how fast it is where somebody has measured that, and how it knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchyard.launcher.backends import calibrations
from launchyard.launcher.backends.calibrations import calibration_file, known_calibrations, machine_name
from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.format import count
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.submit.plan_text import _plan_parts
from launchyard.model.cost import flops_per_token
from launchyard.model.devices import REACHED, peak_flops
from tests.launcher.plan.test_planner import CPU, GPUS, SMALL, plan_of
from tests.model.test_speed import machine

FP32 = {"train__precision": "fp32", "resources__nproc_per_node": 1}
KNOWN = CPU.model_copy(update={"calibrations": (machine(threads=8),)})


def test_by_a_calibration_of_this_machine() -> None:
    plan = plan_of(host=KNOWN, **FP32)
    assert plan.speed is not None and "2026-11-29" in plan.speed.how
    whole = flops_per_token(plan.model, plan.batch.seq_len)
    assert plan.speed.tokens_per_second == pytest.approx(1e11 / whole, rel=0.2)
    assert f"{count(plan.speed.tokens_per_second)} tokens/s" in _plan_parts(plan, load_recipe(SMALL, {}).recipe)[-2]


@pytest.mark.parametrize(
    "changes",
    [
        {"resources__nproc_per_node": 2},
        {"train__precision": "bf16"},
        {"parallel__compile": True},
        {"optimizer__name": "sgd"},
        {"adapter__kind": "lora"},
        {"host": CPU},
        {"host": CPU.model_copy(update={"calibrations": (machine(threads=4),)})},
        {"cluster": Cluster(name="x", scheduler="slurm", storage="/runs")},
    ],
)
def test_nothing_is_said_of_what_nobody_has_measured(changes: dict[str, object]) -> None:
    plan = plan_of(**{"host": KNOWN, **FP32, **changes})
    assert plan.speed is None and "speed" not in plan.model_dump()


def test_by_the_data_sheet_of_a_gpu() -> None:
    plan = plan_of("pretrain/pythia-160m", host=GPUS)
    peak = peak_flops("NVIDIA H100") or 0.0
    assert plan.speed is not None and f"{REACHED:.0%} of NVIDIA H100" in plan.speed.how
    assert plan.speed.tokens_per_second == pytest.approx(8 * REACHED * peak / plan.flops_per_token, rel=1e-3)
    assert plan_of("pretrain/pythia-160m", host=GPUS, train__precision="fp32").speed is None


def test_calibrations_of_other_machines_versions_and_broken_ones_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert known_calibrations() == ()
    mine = machine(machine=machine_name())
    others = [machine(), machine(machine=machine_name(), version=0)]
    for number, one in enumerate([mine, *others]):
        path = calibration_file(str(number), threads=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.model_dump_json())
    calibration_file("broken", threads=1).write_text("{")
    assert known_calibrations() == (mine,)
    monkeypatch.setattr(calibrations, "machine_name", lambda: "made up")
    assert known_calibrations() == (others[0],)


def test_a_cpu_holds_a_copy_of_what_a_save_writes() -> None:
    plan = plan_of(**FP32)
    assert plan.memory["staging"] == plan.checkpoint_bytes
    waits = plan_of(**FP32, checkpoint__async_save=False)
    assert waits.memory["total"] == plan.memory["total"] - plan.checkpoint_bytes and "staging" not in waits.memory
    assert "staging" not in plan_of(host=GPUS).memory
