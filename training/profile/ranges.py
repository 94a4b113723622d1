"""Named ranges in a trace: a step, its phases, the modules of the network. Only there while steps are traced."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.autograd.profiler import record_function
from torch.utils.hooks import RemovableHandle

from launchyard.training.parallel import clean_name
from launchyard.training.profile.digest import MODULE_RANGE


class Stack:
    """Ranges within ranges; the last one opened is the first one closed."""

    def __init__(self) -> None:
        self._open: list[record_function] = []

    def push(self, name: str) -> None:
        opened = record_function(name)
        opened.__enter__()
        self._open.append(opened)

    def pop(self) -> None:
        if self._open:
            self._open.pop().__exit__(None, None, None)

    def clear(self) -> None:
        while self._open:
            self.pop()


class StepRanges:
    """One range a step, in it one for each of its phases; within a phase, one for a wait of other ranks."""

    def __init__(self, phase: str) -> None:
        self._ranges = Stack()
        self._phase = phase

    def begin(self, step: int) -> None:
        self._ranges.clear()
        self._ranges.push(f"step {step}")
        self._ranges.push(self._phase)

    def end(self) -> None:
        self._ranges.clear()

    def switch(self, phase: str) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        self._ranges.pop()
        self._ranges.push(phase)

    def push(self, phase: str) -> None:
        self._ranges.push(phase)

    def pop(self) -> None:
        self._ranges.pop()


class ModuleRanges:
    """One range for each forward of a module, under its name, until they are removed."""

    def __init__(self, model: nn.Module, *, compiled: bool) -> None:
        """compiled: blocks are compiled, and a hook would have them compiled again; they stay without."""
        self._ranges = Stack()
        self._handles = [
            handle
            for name, module in model.named_modules()
            if name and not (compiled and name.startswith("blocks"))
            for handle in self._hook(module, f"{MODULE_RANGE}{clean_name(name)}")
        ]

    def _hook(self, module: nn.Module, name: str) -> Iterator[RemovableHandle]:
        def enter(*_: object) -> None:
            self._ranges.push(name)

        def leave(*_: object) -> None:
            self._ranges.pop()

        yield module.register_forward_pre_hook(enter)
        # Recomputation leaves a forward by an exception as soon as it has what it needs.
        yield module.register_forward_hook(leave, always_call=True)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._ranges.clear()
