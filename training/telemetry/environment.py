"""The record of what is installed where an attempt runs: of the machine, and of torch. Knows no recipe."""

from __future__ import annotations

from launchyard.host.inventory import take_inventory
from launchyard.run import layout
from launchyard.run.events import NOT_RECORDED
from launchyard.run.records import EnvironmentRecord
from launchyard.run.rundir import RunDir
from launchyard.storage.redact import redact
from launchyard.training.telemetry.events import OnEvent


def record_environment(run: RunDir, attempt: int, on_event: OnEvent) -> None:
    """Writes the record. A failure is an event only: no run ends for it."""
    try:
        run.write_json(layout.environment(attempt), take_record().model_dump())
    except OSError as error:
        on_event(NOT_RECORDED, message=str(error))


def take_record() -> EnvironmentRecord:
    import torch

    found = take_inventory()
    found["sources"] = {name: redact(url) for name, url in found["sources"].items()}
    found["variables"] = {name: redact(value) for name, value in found["variables"].items()}
    found["image"] = redact(found["image"])
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    on_gpu = torch.cuda.is_available()
    return EnvironmentRecord(
        **found,
        torch=f"{torch.__version__} ({torch.version.git_version})",
        cuda=torch.version.cuda or torch.version.hip or "",
        cudnn=str(cudnn or ""),
        nccl=".".join(map(str, torch.cuda.nccl.version())) if on_gpu else "",
        gpus=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if on_gpu else [],
    )
