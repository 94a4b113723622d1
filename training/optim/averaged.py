"""A moving average of the weights (EMA), beside any optimizer: it is saved, cut and resumed as moments are.

Knows no schedule and no validation; whoever wants to see the averaged weights has them put in place for a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from launchyard.model.layout import AVERAGE
from launchyard.training.optim.base import Optimizer, StateTensor
from launchyard.training.parallel import local


class Averaged:
    """The optimizer inside, and after each of its updates average = decay * average + (1 - decay) * weight.

    The average starts from the first weights; a step whose update is left out leaves it as it is.
    """

    def __init__(self, inner: Optimizer, model: nn.Module, decay: float) -> None:
        self._inner = inner
        self._decay = decay
        trained = [p for p in model.parameters() if p.requires_grad]
        self._averages = {p: torch.empty_like(local(p.detach()), dtype=_kept_type(p)) for p in trained}
        self._held: dict[nn.Parameter, Tensor] = {}  # averages that weights of fewer bits cannot hold, while exchanged

    @torch.no_grad()
    def begin(self, *, resumed: bool) -> None:
        self._inner.begin(resumed=resumed)
        for p, average in self._averages.items() if not resumed else ():
            average.copy_(local(p.detach()))

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        self._inner.step(number, lr)
        here = [(average, local(p.detach())) for p, average in self._averages.items() if average.numel()]
        for average, weight in here:
            average.lerp_(weight.to(average.dtype), 1 - self._decay)

    def zero_grad(self) -> None:
        self._inner.zero_grad()

    def state(self, parameter: nn.Parameter) -> Mapping[str, StateTensor]:
        inner = self._inner.state(parameter)
        own = self._averages.get(parameter)
        return inner if own is None else {**inner, AVERAGE: StateTensor(own)}

    def weights(self, parameter: nn.Parameter) -> Tensor:
        return self._inner.weights(parameter)

    def evaluating(self) -> AbstractContextManager[None]:
        return self._inner.evaluating()

    @torch.no_grad()
    def exchange(self) -> None:
        """Weights for averages, and back the second time, bit for bit."""
        for p, average in self._averages.items():
            weight = local(p.detach())
            kept = weight.clone()
            whole = average.clone() if average.dtype != weight.dtype else average
            weight.copy_(average)
            average.copy_(kept)
            if p in self._held:
                average.copy_(self._held.pop(p))
            elif whole is not average:
                self._held[p] = whole


def _kept_type(parameter: nn.Parameter) -> torch.dtype:
    """Of an average: fp32 at least, for bf16 would round its small changes away."""
    return parameter.dtype if parameter.dtype == torch.float64 else torch.float32


def with_average(optimizer: Optimizer, model: nn.Module, decay: float | None) -> Optimizer:
    """The same, with a moving average of the weights unless `decay` is None."""
    return optimizer if decay is None else Averaged(optimizer, model, decay)


@contextmanager
def averaged_weights(optimizer: Optimizer, *, wanted: bool) -> Iterator[None]:
    """With the averages in place of the weights that it evaluates, if `wanted`. Nothing may be saved or trained in
    between."""
    if not wanted:
        with optimizer.evaluating():
            yield
        return
    assert isinstance(optimizer, Averaged), "the plan refuses validation.ema without train.ema_decay"
    optimizer.exchange()
    try:
        yield
    finally:
        optimizer.exchange()
