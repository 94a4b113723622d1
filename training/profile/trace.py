"""One window of steps under torch's profiler, from its beginning to its end. Decides nothing, writes no file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.profiler import profile

from launchyard.training.profile.ranges import ModuleRanges, StepRanges
from launchyard.training.profile.requests import Window
from launchyard.training.telemetry.phases import PhaseClock

ALLOCATIONS = 200_000  # that a snapshot of memory remembers


@dataclass(frozen=True)
class Traced:
    """The thread and the model that are traced."""

    model: nn.Module
    clock: PhaseClock
    device: torch.device
    compiled: bool


class Trace:
    """Begins as it is made. RuntimeError if torch's profiler cannot begin."""

    def __init__(self, subject: Traced, window: Window, step: int) -> None:
        self.window = window
        self.first = step
        self.last = step
        self._subject = subject
        on_gpu = subject.device.type == "cuda"
        self.profile = profile(
            use_device="cuda" if on_gpu else None,
            record_shapes=window.shapes,
            profile_memory=window.memory,
            with_stack=window.stacks,
        )
        self.profile.__enter__()
        self.remembers = window.memory and on_gpu
        if self.remembers:
            torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)
        self._modules = ModuleRanges(subject.model, compiled=subject.compiled)
        self._steps = StepRanges(subject.clock.phase)
        subject.clock.ranges = self._steps
        self._steps.begin(step)

    def next_step(self, step: int) -> None:
        self.last = step
        self._steps.begin(step)

    def stop(self, snapshot: str | None = None) -> None:
        """snapshot: where the history of the GPU's memory goes, if it has been remembered."""
        self._subject.clock.ranges = None
        self._steps.end()
        self._modules.remove()
        try:
            if self.remembers and snapshot is not None:
                torch.cuda.memory._dump_snapshot(snapshot)
        finally:
            if self.remembers:
                torch.cuda.memory._record_memory_history(enabled=None)
            self.profile.__exit__(None, None, None)
