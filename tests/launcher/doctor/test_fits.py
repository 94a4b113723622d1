"""Does a recipe fit: what is said follows from the plan, and what is advised would be planned to fit."""

from __future__ import annotations

import pytest

from launchyard.launcher.backends.hardware import HostFacts
from launchyard.launcher.doctor.devices import DeviceFacts
from launchyard.launcher.doctor.fits import TIGHT, FitChange, changes_of, fit_findings, fits_of
from launchyard.launcher.plan.plan import Plan, PlanError
from launchyard.launcher.recipe.load import load_recipe
from launchyard.storage.damage import JsonObject
from launchyard.training.recipe import Recipe, apply_overrides
from tests.launcher.plan.test_planner import CPU, GPUS, SMALL, plan_of

H100 = DeviceFacts(kind="nvidia", name="H100", memory=80 * 10**9, free=80 * 10**9)


def cpu_of(memory: int, free: int | None = None) -> DeviceFacts:
    return DeviceFacts(kind="cpu", name="CPU", memory=memory, free=memory if free is None else free)


class Planned:
    """A recipe in a place, and its plan with other keys."""

    def __init__(self, host: HostFacts = CPU, **keys: object) -> None:
        self.host = host
        self.recipe = load_recipe(SMALL, {key.replace("__", "."): value for key, value in keys.items()}).recipe
        self.plan = plan_of(self.recipe, host)

    def again(self, keys: JsonObject) -> Plan | None:
        raw = self.recipe.model_dump(mode="json", exclude_none=True)
        try:
            return plan_of(Recipe.model_validate(apply_overrides(raw, keys)), self.host)
        except PlanError:
            return None

    def changes(self, available: int) -> list[FitChange]:
        return changes_of(self.plan, self.recipe, self.again, available)


@pytest.mark.parametrize("share", [0.99, 0.7, 0.5, 0.3, 0.1, 0.01])
def test_what_is_advised_fits(share: float) -> None:
    planned = Planned(train__global_batch_size=24)
    available = int(share * planned.plan.memory["total"])
    for change in planned.changes(available):
        again = planned.again(change.overrides)
        assert again is not None and again.memory["total"] == change.needed <= TIGHT * available
        assert change.needed < planned.plan.memory["total"]


def test_of_micro_batches_the_largest_is_advised_once() -> None:
    planned = Planned(train__global_batch_size=24)
    found = planned.changes(int(0.8 * planned.plan.memory["total"]))
    (batch,) = [one.overrides["train.micro_batch_size"] for one in found if "train.micro_batch_size" in one.overrides]
    larger = [size for size in range(batch + 1, 24) if 24 % size == 0]
    assert all((planned.again({"train.micro_batch_size": size}) or planned.plan).memory["total"]
               > 0.8 * TIGHT * planned.plan.memory["total"] for size in larger)  # fmt: skip


def test_workers_with_a_copy_each_are_told_to_share() -> None:
    planned = Planned(GPUS, parallel__shard_level=0, train__global_batch_size=8, resources__nproc_per_node=8)
    found = planned.changes(int(0.95 * planned.plan.memory["total"]))
    assert {"parallel.shard_level": 3} in [one.overrides for one in found]


def test_each_gpu_is_looked_at_and_the_workers_of_a_cpu_share_it() -> None:
    gpus = Planned(GPUS, train__global_batch_size=8, resources__nproc_per_node=8)
    assert [fit.available for fit in fits_of(gpus.plan, [H100] * 8 + [cpu_of(1)])] == [H100.memory] * 8
    cpu = Planned(resources__nproc_per_node=2)
    (fit,) = fits_of(cpu.plan, [cpu_of(1000, 500)])
    assert (fit.available, fit.free, fit.workers) == (500, 250, 2)


@pytest.mark.parametrize(
    ("memory", "free", "level", "said"),
    [(0.5, None, "error", "does not fit"), (1.05, None, "warning", "may not fit"), (4.0, 0.5, "warning", "others"),
     (4.0, None, "ok", "planned of")],
)  # fmt: skip
def test_levels(memory: float, free: float | None, level: str, said: str) -> None:
    planned = Planned()
    needed = planned.plan.memory["total"]
    device = cpu_of(int(memory * needed), None if free is None else int(free * needed))
    (found,) = fit_findings(fits_of(planned.plan, [device]), [])
    assert found.level == level and said in found.found and bool(found.fix) == (level != "ok")
