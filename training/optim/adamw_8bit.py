"""AdamW with the two moments of a matrix in 8 bits each, block by block (Dettmers et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from launchyard.training.optim.base import InPlace, ParameterGroup, StateTensor, given
from launchyard.training.optim.state_size import CODED_BLOCK, is_coded
from launchyard.training.parallel import local
from launchyard.training.sections.optimizer import OptimizerConfig

DECADES = 7


class AdamW8bit(InPlace):
    """A moment is a code for each number and a scale for each block. No block lies in two rows, so that moments are cut
    and joined between any numbers of ranks as they are. Vectors, and matrices with short rows, keep fp32.

    The step itself is that of AdamW in fp32; what rounding loses, it loses between two steps.
    """

    def __init__(self, groups: Sequence[ParameterGroup], config: OptimizerConfig) -> None:
        super().__init__(groups)
        self._betas = given(config.betas)
        self._eps = given(config.eps)
        for p, state in self._state.items():
            part = local(p.detach())
            for key in ("exp_avg", "exp_avg_sq"):
                if not is_coded(p.shape):
                    state[key] = StateTensor(torch.zeros_like(part))
                    continue
                zero = _encode(torch.zeros(1, 1), key)[0].item()
                blocks = -(-part.shape[-1] // CODED_BLOCK)
                state[key] = StateTensor(torch.full_like(part, zero, dtype=torch.uint8))
                state[f"{key}_scale"] = StateTensor(part.new_zeros(*part.shape[:-1], blocks))

    @torch.no_grad()
    def step(self, number: int, lr: float) -> None:
        beta1, beta2 = self._betas
        for group, p, weight, grad in self._with_gradients():
            state = {key: entry.tensor for key, entry in self._state[p].items()}
            moments = {key: read_moment(state, key) for key in ("exp_avg", "exp_avg_sq")}
            mean = moments["exp_avg"].lerp_(grad, 1 - beta1)
            square = moments["exp_avg_sq"].lerp_(grad * grad, 1 - beta2)
            scaled = lr * group.lr_scale
            weight.mul_(1 - scaled * group.weight_decay)
            root = square.sqrt().div_((1 - beta2**number) ** 0.5).add_(self._eps)
            weight.addcdiv_(mean, root, value=-scaled / (1 - beta1**number))
            for key, moment in moments.items():
                write_moment(state, key, moment)


def read_moment(state: dict[str, Tensor], key: str) -> Tensor:
    """A moment in fp32, out of its codes if it has any."""
    scales = state.get(f"{key}_scale")
    if scales is None:
        return state[key]
    columns = state[key].shape[-1]
    return _levels(key, scales.device)[state[key].int()] * scales.repeat_interleave(CODED_BLOCK, dim=-1)[..., :columns]


def write_moment(state: dict[str, Tensor], key: str, moment: Tensor) -> None:
    """Into its codes; one without has changed where it lies."""
    scales = state.get(f"{key}_scale")
    if scales is not None:
        codes, found = _encode(moment, key)
        state[key].copy_(codes)
        scales.copy_(found)


def _encode(moment: Tensor, key: str) -> tuple[Tensor, Tensor]:
    """(codes, scales) of the nearest levels. A second moment above 0 stays above 0: a step is divided by its root."""
    *lead, columns = moment.shape
    blocks = -(-columns // CODED_BLOCK)
    padded = torch.nn.functional.pad(moment, (0, blocks * CODED_BLOCK - columns)).view(*lead, blocks, CODED_BLOCK)
    scales = padded.abs().amax(dim=-1)
    relative = padded / scales.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    levels = _levels(key, moment.device)
    codes = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2)
    if key == "exp_avg_sq":
        codes += (codes == 0) & (padded > 0)
    return codes.to(torch.uint8).view(*lead, -1)[..., :columns], scales


@cache
def _levels(key: str, device: torch.device) -> Tensor:
    """The 256 values between -1 (0 for squares) and 1 that a code stands for: each decade below 1 has half as many as
    the one above it, evenly spaced; and 0 and the ends themselves."""
    signs = (1.0,) if key == "exp_avg_sq" else (1.0, -1.0)
    found = [0.0, 1.0]
    for decade in range(DECADES):
        count = 256 // len(signs) >> decade + 1
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
        middles = (edges[1:] + edges[:-1]) / 2 * 10.0**-decade
        found += [sign * value for sign in signs for value in middles.tolist()]
    levels = sorted(found)
    levels[0] = -1.0 if len(signs) == 2 else 0.0  # the 256 have no place for it else, and the largest would shrink
    return torch.tensor(levels, dtype=torch.float32, device=device)
