"""`launch doctor` on what this machine computes with: each device by name, its memory, and whether anybody has run
this product on its kind. Asks torch in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from launchyard.errors import LaunchError
from launchyard.host.environment import own_environment
from launchyard.host.inventory import cpu_name
from launchyard.host.packages import install_command
from launchyard.host.processes import python_argv, python_environment
from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.backends.hardware import HostFacts, machine_free
from launchyard.launcher.format import size
from launchyard.run import own_code

DEVICE_PROBE = "launchyard.launcher.doctor.device_probe"
PROBE_SECONDS = 120.0
UNTRIED = "untried: nobody has run this product there"
MAKERS = {"nvidia": "NVIDIA", "rocm": "AMD, by ROCm", "mps": "Apple, by MPS"}
# Of the flags in /proc/cpuinfo those that decide how fast training is.
AMX = "amx_bf16"
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", AMX, "amx_int8", "asimd", "bf16", "sve")


class DeviceFacts(BaseModel):
    """One GPU, or the CPU. Bytes; free: None where it was not told."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["nvidia", "rocm", "mps", "cpu"]
    name: str
    memory: int
    free: int | None
    cores: int | None = None
    flags: tuple[str, ...] = ()

    @property
    def untried(self) -> bool:
        return self.kind in ("rocm", "mps")

    def to_json(self) -> dict[str, object]:
        return {**self.model_dump(mode="json", exclude_none=True), "untried": self.untried}


class Machine(BaseModel):
    """The devices of this machine, the CPU last, and the versions of what drives them."""

    model_config = ConfigDict(frozen=True)

    torch: str | None = None
    cuda: str | None = None
    rocm: str | None = None
    driver: str = ""
    devices: tuple[DeviceFacts, ...] = ()


def look_at_machine(host: HostFacts) -> Machine:
    """LaunchError if the probe fails."""
    env = python_environment(own_environment(), code=own_code.movable())
    argv = [*python_argv(sys.executable), "-m", DEVICE_PROBE]
    try:
        done = subprocess.run(
            argv, env=env, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"torch does not tell its devices within {PROBE_SECONDS:.0f} s") from error
    if done.returncode:
        raise LaunchError(f"torch could not be asked for its devices: {done.stderr.strip()[-300:]}")
    found = Machine.model_validate(json.loads(done.stdout.splitlines()[-1]))
    return found.model_copy(update={"devices": (*found.devices, _cpu(host))})


def _cpu(host: HostFacts) -> DeviceFacts:
    return DeviceFacts(
        kind="cpu", name=cpu_name(), memory=host.memory, free=machine_free(), cores=host.cpus, flags=_cpu_flags()
    )


def _cpu_flags() -> tuple[str, ...]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ()
    words = next(
        (line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))), []
    )
    return tuple(flag for flag in CPU_FLAGS if flag in words)


def device_findings(machine: Machine) -> Iterator[Finding]:
    """One for torch, with what it was built for, and one for each device."""
    if machine.torch is None:
        yield Finding(what="torch", level="error", found="not installed", fix=install_command("train"))
    else:
        yield Finding(what="torch", level="ok", found=" · ".join(_versions(machine)))
    for device in machine.devices:
        yield _device_finding(device)


def _versions(machine: Machine) -> Iterator[str]:
    yield str(machine.torch)
    built = {"CUDA": machine.cuda, "ROCm": machine.rocm}
    yield from (f"built for {name} {version}" for name, version in built.items() if version)
    if not any(built.values()):
        yield "built for the CPU"
    if machine.driver:
        yield f"driver {machine.driver}"


def _bf16_words(flags: Sequence[str]) -> str:
    if AMX in flags:
        return "train.precision=bf16 is 1.7 to 2 times as fast as fp32 by AMX (launch bench tries it)"
    return "no AMX: fp32 is about twice as fast as bf16"


def _device_finding(device: DeviceFacts) -> Finding:
    free = "" if device.free is None else f", {size(device.free)} free"
    memory = f"{size(device.memory)}{free}"
    if device.kind == "cpu":
        flags = f" · {' '.join(device.flags)}" if device.flags else ""
        cores = f"{device.cores} core{'s' if device.cores != 1 else ''}"
        found = f"{device.name} · {cores} · {memory}{flags} · {_bf16_words(device.flags)}"
        return Finding(what="CPU", level="ok", found=found)
    found = f"{device.name} · {MAKERS[device.kind]} · {memory}"
    if not device.untried:
        return Finding(what="GPU", level="ok", found=found)
    fix = {
        "rocm": "try train.device=cuda, torch's name for it, with a short run; train.device=cpu is tried",
        "mps": "try train.device=mps with a short run; train.device=cpu is tried",
    }
    return Finding(what="GPU", level="warning", found=f"{found} · {UNTRIED}", fix=fix[device.kind])
