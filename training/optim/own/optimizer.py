"""An optimizer of the user's own file, any torch.optim.Optimizer, behind the interface of base.py.

Its parameters are the model's own, DTensors where they are cut over ranks: what it computes of a whole matrix is of
the whole one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from launchyard.training.optim.base import InPlace, StateTensor, parameter_groups
from launchyard.training.own.load import OwnCode, WrongReturnError
from launchyard.training.parallel import clean_name, local
from launchyard.training.sections.optimizer import OptimizerConfig


class OwnOptimizer(InPlace):
    """torch makes the state of a parameter in its first step, and a checkpoint is read before it. So one optimizer
    takes a step without effect, to show the form of its state, and goes on with a checkpoint; a run that begins has
    a fresh one."""

    def __init__(self, model: nn.Module, config: OptimizerConfig, code: OwnCode) -> None:
        super().__init__(parameter_groups(model, 0.0))
        self._code = code
        self._config = config
        self._named = [(clean_name(name), p) for name, p in model.named_parameters() if p.requires_grad]
        self._form = self._made()
        self._try(self._form)
        self._optimizer = self._form

    def begin(self, *, resumed: bool) -> None:
        if not resumed:
            self._optimizer = self._made()

    def step(self, number: int, lr: float) -> None:
        self._at(self._optimizer, lr)
        try:
            self._optimizer.step()
        except Exception as error:
            raise self._code.failed("optimizer", error) from error

    def state(self, parameter: nn.Parameter) -> Mapping[str, StateTensor]:
        """As in the step without effect, until the first one is done."""
        held = self._optimizer.state.get(parameter) or self._form.state.get(parameter, {})
        return {key: _part(value, parameter) for key, value in held.items() if isinstance(value, Tensor)}

    def _made(self) -> torch.optim.Optimizer:
        values = {"lr": self._config.lr, "weight_decay": self._config.weight_decay}
        made = self._code.call("optimizer", named_parameters=list(self._named), **values)
        if not isinstance(made, torch.optim.Optimizer):
            raise self._wrong(f"it returned {type(made).__name__}; allowed: a torch.optim.Optimizer")
        self._check_parameters(made)
        for group in made.param_groups:
            if isinstance(group["lr"], Tensor):
                raise self._wrong("the lr of a group is a tensor; give it as a number")
            group.setdefault("lr_scale", group["lr"] / self._config.lr)
        return made

    def _check_parameters(self, made: torch.optim.Optimizer) -> None:
        given = {id(p) for group in made.param_groups for p in group["params"]}
        lacking = [name for name, p in self._named if id(p) not in given]
        if lacking:
            listed = ", ".join(lacking[:4])
            raise self._wrong(f"its optimizer lacks {listed}{', …' * (len(lacking) > 4)}; give it all named_parameters")
        if len(given) > len(self._named):
            raise self._wrong("its optimizer has parameters that are not among named_parameters")

    @staticmethod
    def _at(optimizer: torch.optim.Optimizer, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

    def _try(self, optimizer: torch.optim.Optimizer) -> None:
        """A step without effect: no gradient, and the parameters are put back."""
        kept = {p: p.detach().clone() for _, p in self._named}
        settings = _settings(optimizer)
        for p in kept:
            p.grad = torch.zeros_like(p)
        self._at(optimizer, 0.0)
        optimizer.step()
        self.zero_grad()
        with torch.no_grad():
            for p, before in kept.items():
                p.copy_(before)
        now = _settings(optimizer)
        if changed := [key for key in now if now[key] != settings.get(key, now[key]) or key not in settings]:
            raise self._wrong(f"its optimizer keeps {changed[0]} in a parameter group, where no checkpoint saves it")
        for p in kept:
            self._check_state(p, optimizer.state.get(p, {}))

    def _check_state(self, parameter: nn.Parameter, state: Mapping[str, object]) -> None:
        for key, value in state.items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise self._wrong(f"its optimizer keeps {key} as {type(value).__name__}; only tensors are saved")
            if not value.ndim:
                continue
            if value.shape[0] != parameter.shape[0]:
                shapes = f"{tuple(value.shape)} for a parameter {tuple(parameter.shape)}"
                raise self._wrong(f"its state {key} is {shapes}; it must be one number, or as long as the parameter")
            if getattr(value, "placements", None) != getattr(parameter, "placements", None):
                raise self._wrong(f"its state {key} is not cut over workers as its parameter is; use torch.zeros_like")

    def _wrong(self, what: str) -> Exception:
        return self._code.failed("optimizer", WrongReturnError(what))


def _part(value: Tensor, parameter: nn.Parameter) -> StateTensor:
    return StateTensor(local(value), is_whole=value.ndim == 0 and parameter.ndim > 0)


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return {
        f"{key} of group {number}": value
        for number, group in enumerate(optimizer.param_groups)
        for key, value in group.items()
        if key not in ("params", "lr")
    }
