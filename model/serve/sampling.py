"""Rules for drawing the next token from logits, and what they draw. Knows no model and no text.

In order: bias and penalties, temperature, the top_k likeliest, of them the fewest that reach top_p, of them those with
at least min_p of the likeliest's odds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launchyard.model.network.transfers import device_of_fp64

# So many likely tokens nearly always reach top_p; where they do not, all are sorted.
_LIKELY = 1024
_NUMBERS = ("temperature", "repetition_penalty", "repeat_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the likeliest token; None keeps all tokens, and a penalty of its default changes nothing.

    repetition_penalty divides the logits of tokens that are in the prompt or the text, and multiplies negative ones
    (Keskar et al. 2019); repeat_penalty takes that part of their size away (LightGPT's rule). presence_penalty and
    frequency_penalty are taken from the logits of tokens of the new text, the second as often as they are in it
    (OpenAI's rules). penalty_window: only so many of the last tokens count; None: all. logit_bias: is added.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    repeat_penalty: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _NUMBERS:
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number")
        for token, bias in self.logit_bias.items():
            if not bias < math.inf:
                raise ValueError(f"logit_bias of token {token} is {bias}; it must be a number, or -inf")
        _at_least("temperature", self.temperature, 0, "0: always the likeliest token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or none to keep all tokens")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} is {value}; it must lie in (0, 1]")
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 changes nothing)")
        if self.penalty_window is not None:
            _at_least("penalty_window", self.penalty_window, 1, "or none for the whole text")

    @property
    def changes_logits(self) -> bool:
        """True if logits depend on more than the model."""
        penalties = self.repeat_penalty or self.presence_penalty or self.frequency_penalty
        return bool(self.logit_bias or penalties or self.repetition_penalty != 1)

    @property
    def cut(self) -> tuple[float, int | None, float | None, float | None]:
        """What the draw itself depends on."""
        return self.temperature, self.top_k, self.top_p, self.min_p


def _at_least(name: str, value: float, least: float, advice: str) -> None:
    if not value >= least:
        raise ValueError(f"{name} is {value}; it must be at least {least} ({advice})")


@torch.inference_mode()
def change_logits(logits: Tensor, sampling: Sampling, prompt: Sequence[int], new: Sequence[int]) -> None:
    """Add bias and penalties to the logits (V,) behind a prompt and the new text, in place."""
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    window = sampling.penalty_window
    seen = [*prompt, *new] if window is None else [*prompt[max(0, len(prompt) + len(new) - window) :], *new][-window:]
    if sampling.repetition_penalty != 1 or sampling.repeat_penalty:
        drawable = {token for token in seen if token < len(logits)}  # a prompt may hold ids of padding
        there = torch.tensor(sorted(drawable), dtype=torch.int64, device=logits.device)
        values = logits[there]
        penalty = sampling.repetition_penalty
        values = torch.where(values > 0, values / penalty, values * penalty)
        logits[there] = values - sampling.repeat_penalty * values.abs()
    if sampling.presence_penalty or sampling.frequency_penalty:
        own = new if window is None else new[-window:]
        there, counts = torch.tensor(own, dtype=torch.int64, device=logits.device).unique(return_counts=True)
        logits[there] -= sampling.presence_penalty + sampling.frequency_penalty * counts.to(logits.dtype)


@torch.inference_mode()
def draw_tokens(logits: Tensor, sampling: Sampling, uniform: Sequence[float]) -> list[int]:
    """A token a row from logits (B, V); `uniform` holds a number in [0, 1) a row, which decides alone."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    odds, ids = _likeliest(logits.to(device_of_fp64(logits.device)), sampling)
    mass = odds.cumsum(-1)  # in fp64: a long tail must not round
    last = mass.shape[-1] - 1
    if sampling.top_p is not None and sampling.top_p < 1:  # the fewest tokens that together reach top_p
        kept = (mass < sampling.top_p).sum(-1, keepdim=True).clamp(max=last)
    else:
        kept = torch.full_like(mass[:, :1], last, dtype=torch.int64)
    if sampling.min_p is not None:
        kept = torch.minimum(kept, (odds >= sampling.min_p * odds[:, :1]).sum(-1, keepdim=True) - 1)
    targets = torch.tensor(uniform, dtype=torch.float64, device=mass.device)[:, None] * mass.gather(-1, kept)
    at = torch.minimum(torch.searchsorted(mass, targets, right=True), kept)
    return (at if ids is None else ids.gather(-1, at))[:, 0].tolist()


def _likeliest(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Odds from the highest on, in fp64, and their tokens; of all in the order of tokens where none is cut.

    With top_k they are among the kept ones, else among all.
    """
    size = logits.shape[-1]
    k = min(sampling.top_k or size, size)
    if k < size:
        values, ids = torch.topk(logits, k)
        return _odds(values, sampling), ids
    odds = _odds(logits, sampling)
    if sampling.min_p is None and (sampling.top_p is None or sampling.top_p == 1):
        return odds, None
    n = min(_LIKELY, size)
    ids = torch.topk(logits, n).indices
    likely = odds.gather(-1, ids)
    enough = torch.full_like(likely[:, 0], n == size, dtype=torch.bool)
    if sampling.top_p is not None:
        enough |= likely.cumsum(-1)[:, -1] >= sampling.top_p
    if sampling.min_p is not None:
        enough |= likely[:, -1] < sampling.min_p * likely[:, 0]
    if enough.all():
        return likely, ids
    every = torch.sort(logits, descending=True, stable=True).indices
    sorted_odds = odds.gather(-1, every)
    every[enough, :n] = ids[enough]  # equal logits in the order that the row has without its neighbours
    sorted_odds[enough, :n] = likely[enough]
    return sorted_odds, every


def _odds(logits: Tensor, sampling: Sampling) -> Tensor:
    """From the likeliest on before the division: a temperature near 0 must give no infinity."""
    wide = logits.double()
    return torch.softmax((wide - wide.amax(-1, keepdim=True)) / sampling.temperature, dim=-1)
