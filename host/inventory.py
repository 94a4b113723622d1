"""What is installed where this process runs: Python and its packages, modules, operating system, driver.

Enough to build the same environment anew, and no more: of the variables only those that libraries compute by, and no
names of people or machines. Standard library only.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from launchyard.host.environment import IMAGE, variable, variables

# Settings of libraries that decide how tensors are computed and sent.
_COMPUTING = (
    "CUDA_", "CUBLAS_", "CUDNN_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "TRITON_", "OMP_", "MKL_", "KMP_", "NVIDIA_",
    "UCX_", "FI_",
)  # fmt: skip
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL|AUTH")
_DRIVER = Path("/proc/driver/nvidia/version")


class Inventory(TypedDict):
    python: str
    executable: str
    packages: dict[str, str]
    sources: dict[str, str]
    conda: list[str]
    system: str
    kernel: str
    libc: str
    machine: str
    cpu: str
    driver: str
    modules: list[str]
    module_files: list[str]
    image: str
    variables: dict[str, str]


def take_inventory() -> Inventory:
    """Returns all of it; a part that this machine does not have is empty."""
    packages, sources = _packages()
    return Inventory(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        executable=sys.executable,
        packages=packages,
        sources=sources,
        conda=sorted(path.stem for path in Path(sys.prefix, "conda-meta").glob("*.json")),
        system=_system(),
        kernel=platform.release(),
        libc=" ".join(platform.libc_ver()).strip(),
        machine=platform.machine(),
        cpu=_field("/proc/cpuinfo", "model name"),
        driver=driver_version(),
        modules=_listed("LOADEDMODULES"),
        module_files=_listed("_LMFILES_"),
        image=variable(IMAGE) or variable("APPTAINER_CONTAINER") or variable("SINGULARITY_CONTAINER") or "",
        variables={name: value for name, value in variables(_COMPUTING).items() if not _SECRET.search(name)},
    )


def driver_version() -> str:
    """Of NVIDIA's kernel module; empty without one."""
    return _field(_DRIVER, "NVRM version")


def cpu_name() -> str:
    return _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _packages() -> tuple[dict[str, str], dict[str, str]]:
    """Versions, and the address of those that did not come from an index. Of two by one name the first is imported."""
    versions: dict[str, str] = {}
    sources: dict[str, str] = {}
    for found in metadata.distributions():
        name = found.metadata["Name"]
        if not name or name in versions:
            continue
        versions[name] = found.version
        if (text := found.read_text("direct_url.json")) is not None:
            sources[name] = _address(text)
    return dict(sorted(versions.items())), dict(sorted(sources.items()))


def _address(text: str) -> str:
    """URL of a package, with the commit where it is known."""
    try:
        found = json.loads(text)
        commit = found.get("vcs_info", {}).get("commit_id")
        return f"{found['url']}@{commit}" if commit else str(found["url"])
    except (ValueError, KeyError, AttributeError):
        return "unknown"


def _system() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _field(path: str | Path, key: str) -> str:
    """The value in the first line `key : value` of a file; empty if there is none."""
    try:
        with open(path) as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(key)), "")
    except OSError:
        return ""


def _listed(name: str) -> list[str]:
    return [part for part in (variable(name) or "").split(":") if part]
