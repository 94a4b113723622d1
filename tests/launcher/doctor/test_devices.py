"""`launch doctor` on devices: this machine's CPU for real; GPUs as torch's own interface tells them, of a torch that is
made up."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from launchyard.launcher.backends import hardware
from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.backends.hardware import Gpu, machine_free, probe_host
from launchyard.launcher.cli.doctor import doctor
from launchyard.launcher.doctor.device_probe import look
from launchyard.launcher.doctor.devices import UNTRIED, DeviceFacts, Machine, device_findings, look_at_machine
from tests.launcher.plan.test_planner import GPUS, H100, plan_of

GB = 10**9


def torch_with(*, cuda: str | None = None, hip: str | None = None, mps: bool = False, full: bool = False) -> Any:
    """As much of torch as the probe asks: two GPUs where it was built for some, Apple's beside them."""

    def free(number: int) -> tuple[int, int]:
        if full:
            raise RuntimeError("CUDA error: out of memory")
        return (number + 1) * GB, 80 * GB

    gpus = types.SimpleNamespace(
        is_available=lambda: bool(cuda or hip),
        device_count=lambda: 2,
        get_device_properties=lambda number: types.SimpleNamespace(name=f"GPU {number}", total_memory=80 * GB),
        mem_get_info=free,
    )
    apple = types.SimpleNamespace(recommended_max_memory=lambda: 48 * GB, driver_allocated_memory=lambda: 2 * GB)
    return types.SimpleNamespace(
        __version__="2.13",
        version=types.SimpleNamespace(cuda=cuda, hip=hip),
        cuda=gpus,
        backends=types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: mps)),
        mps=apple,
    )


def findings(torch: Any) -> list[Finding]:
    return list(device_findings(Machine.model_validate(look(torch))))


def test_each_gpu_of_nvidia_is_named_with_its_memory() -> None:
    versions, first, second = findings(torch_with(cuda="13.0"))
    assert "built for CUDA 13.0" in versions.found
    assert first.found == "GPU 0 · NVIDIA · 80 GB, 1 GB free" and second.found == "GPU 1 · NVIDIA · 80 GB, 2 GB free"
    assert {one.level for one in (versions, first, second)} == {"ok"}


def test_a_full_gpu_is_named_all_the_same() -> None:
    _, first, _ = findings(torch_with(cuda="13.0", full=True))
    assert first.found == "GPU 0 · NVIDIA · 80 GB"


@pytest.mark.parametrize(
    ("torch", "names", "fix"),
    [
        (torch_with(hip="7.1"), ["AMD, by ROCm", "AMD, by ROCm"], "train.device=cuda"),
        (torch_with(mps=True), ["Apple, by MPS"], "train.device=mps"),
    ],
)
def test_what_nobody_has_run_is_marked(torch: Any, names: list[str], fix: str) -> None:
    gpus = findings(torch)[1:]
    assert len(gpus) == len(names)
    for found, name in zip(gpus, names, strict=True):
        assert name in found.found and UNTRIED in found.found and found.level == "warning" and fix in found.fix


def test_without_torch_there_is_a_way_to_get_it() -> None:
    (found,) = device_findings(Machine(torch=None))
    assert found.level == "error" and "install" in found.fix


def test_the_torch_that_is_here() -> None:
    import torch

    found = look(torch)
    assert found["torch"] == torch.__version__
    assert len(found["devices"]) == torch.cuda.device_count() or not torch.cuda.is_available()


@pytest.mark.slow
def test_this_machine() -> None:
    """Of a process that loads torch."""
    host = probe_host(gpus=False)
    machine = look_at_machine(host)
    import torch

    assert machine.torch == torch.__version__
    cpu = machine.devices[-1]
    assert cpu.kind == "cpu" and cpu.name and cpu.cores == host.cpus and cpu.memory == host.memory
    assert cpu.free is not None and 0 < cpu.free <= psutil.virtual_memory().total


def test_a_control_group_that_is_nearly_full_leaves_little(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "/sys/fs/cgroup/memory."
    group = {f"{folder}max": "4000000000", f"{folder}current": "3500000000", f"{folder}stat": "anon 1\ninactive_file 5"}
    monkeypatch.setattr(hardware, "_read", lambda path: group.get(path, ""))
    assert machine_free() == 500_000_005


def test_amd_gpus_are_planned_for_by_torchs_name_and_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"code": 0, "gpus": [{"name": "MI300X", "memory": 192 * GB, "capability": [8, 0], "rocm": True}] * 2}
    asked: list[list[str]] = []

    def answer(argv: list[str], **_: object) -> Any:
        asked.append(argv)
        return types.SimpleNamespace(returncode=0, stdout=json.dumps(found), stderr="")

    monkeypatch.setattr(hardware.os.path, "exists", lambda path: path == "/dev/kfd")
    monkeypatch.setattr(hardware.subprocess, "run", answer)
    gpus = probe_host().gpus
    assert [gpu.name for gpu in gpus] == ["MI300X"] * 2 and "torch.version.hip" in asked[0][-1]
    plan = plan_of(host=GPUS.model_copy(update={"gpus": gpus}))
    assert plan.device == "cuda" and any("untried" in note for note in plan.notes)
    assert not any("untried" in note for note in plan_of(host=GPUS.model_copy(update={"gpus": (H100,)})).notes)
    assert not Gpu(name="x", memory=1, capability=(9, 0)).rocm


def test_the_command_tells_devices_and_whether_a_recipe_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = DeviceFacts(kind="cpu", name="Abacus", memory=GB, free=GB, cores=1)
    monkeypatch.setattr(
        "launchyard.launcher.doctor.devices.look_at_machine", lambda host: Machine(torch="2.13", devices=(small,))
    )
    words = ["quickstart", "train.device=cpu", "--no-job", "--json"]
    done = CliRunner().invoke(doctor, words, standalone_mode=False)
    assert done.return_value == 0, done.output
    told = json.loads(done.output)
    assert told["devices"] == [
        {"kind": "cpu", "name": "Abacus", "memory": GB, "free": GB, "cores": 1, "flags": [], "untried": False}
    ]
    assert told["fits"]["devices"][0]["fits"] and told["fits"]["changes"] == []
    done = CliRunner().invoke(doctor, [*words, "model.dim=1536"], standalone_mode=False)
    told = json.loads(done.output)
    assert done.return_value == 1 and not told["fits"]["devices"][0]["fits"]
    assert [one["level"] for one in told["findings"] if one["what"] == "fits"] == ["error"]


@pytest.mark.parametrize(("flags", "words"), [(("avx2", "amx_bf16"), "1.7 to 2 times"), (("avx512_bf16",), "no AMX")])
def test_a_cpu_says_what_bf16_gains_there(flags: tuple[str, ...], words: str) -> None:
    cpu = DeviceFacts(kind="cpu", name="Abacus", memory=GB, free=GB, cores=2, flags=flags)
    *_, found = device_findings(Machine(torch="2.13.0", devices=(cpu,)))
    assert found.level == "ok" and words in found.found
