"""on_step, on_validation and on_end: called on rank 0 with finished numbers. Knows no loop, and no live tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from launchyard.training.own.contract import wrong_figure
from launchyard.training.own.load import OwnCode, WrongReturnError
from launchyard.training.own.values import RunEnd, StepDone, StopTraining, ValidationDone


@dataclass
class Hooks:
    """`wants_end`: why one of them has asked for the end of the run, for the next agreement of all ranks."""

    code: OwnCode
    wants_end: str | None = None

    def on_step(self, row: StepDone) -> dict[str, float]:
        """More figures of the step, by name."""
        returned = self._called("on_step", row=row)
        if returned is None:
            return {}
        try:
            return _checked(returned)
        except WrongReturnError as error:
            raise self.code.failed("on_step", error) from error

    def on_validation(self, row: ValidationDone) -> None:
        self._called("on_validation", row=row)

    def on_end(self, run: RunEnd) -> None:
        if self.code.has("on_end"):
            self.code.call("on_end", run=run)

    def _called(self, function: str, **values: object) -> object:
        if not self.code.has(function):
            return None
        try:
            return self.code.call(function, **values)
        except StopTraining as stop:
            self.wants_end = self.wants_end or f"{function} of {self.code.name}: {stop}".removesuffix(": ")
            return None


def _checked(returned: object) -> dict[str, float]:
    if not isinstance(returned, Mapping):
        raise WrongReturnError(f"it returned {type(returned).__name__}; allowed: None, or {{name: number}}")
    found: dict[str, float] = {}
    for name, value in returned.items():
        if (why := wrong_figure(str(name))) is not None:
            raise WrongReturnError(f"it returned a figure whose name {why}")
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise WrongReturnError(f"figure {name} is {value!r}, which is no number") from error
        if not math.isfinite(found[str(name)]):
            raise WrongReturnError(f"figure {name} is {value!r}; leave out what is not finite")
    return found
