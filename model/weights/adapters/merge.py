"""An adapter's base with the updates in it, as weights to be written in the type of the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from launchyard.model.adapter import Adapter
from launchyard.model.layout import parameters
from launchyard.model.weights.adapters.peft_config import is_peft
from launchyard.model.weights.load import (
    CheckpointWeights,
    MergedWeights,
    low_rank_merged,
    open_weights,
    sampled_digest,
)
from launchyard.model.weights.source import Source, find_source


class Rounded:
    """Merged weights for one type of elements, and the largest number that rounding to it took or gave so far."""

    def __init__(self, weights: MergedWeights, dtype: torch.dtype) -> None:
        self.config = weights.config
        self.largest_difference = 0.0
        self._weights = weights
        self._dtype = dtype

    def keys(self) -> list[str]:
        return self._weights.keys()

    def dtype(self, key: str) -> torch.dtype:
        return self._weights.dtype(key)

    def get(self, key: str) -> Tensor:
        return self._noted(self._weights.get(key))

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        for key, found in self._weights.rows(wanted):
            yield key, self._noted(found)

    def _noted(self, found: Tensor) -> Tensor:
        if found.numel():
            difference = (found.float() - found.to(self._dtype).float()).abs().max().item()
            self.largest_difference = max(self.largest_difference, difference)
        return found


def open_adapted(model: str, base: str | None) -> tuple[Source, MergedWeights]:
    """A run with an adapter, a PEFT folder or BASE+ADAPTER; `base` takes the place of the base that it names.

    ValueError for a model without an adapter.
    """
    if base is not None and is_peft(model):
        model = f"{base}+{model}"
        base = None
    source = find_source(model)
    _, weights = open_weights(model)
    if not isinstance(weights, MergedWeights):
        raise ValueError(f"{model} holds no adapter: it is merged, or never had one; `launch export` writes it")
    if base is None:
        return source, weights
    if not isinstance(weights.base, CheckpointWeights):
        raise ValueError(f"{model} names its base itself; leave --base out")
    return source, _over(weights.base, base)


def form_of_base(weights: MergedWeights) -> str | None:
    """The form of a quantised base whose values the merge is over."""
    return weights.base.form if isinstance(weights.base, CheckpointWeights) else None


def _over(run: CheckpointWeights, base: str) -> MergedWeights:
    others = parameters(run.config, Adapter()).keys() - run.frozen
    if others:
        raise ValueError(
            f"the run trained {sorted(others)[0]} whole, which another base does not have; leave --base out"
        )
    _, weights = open_weights(base)
    if weights.config != run.config:
        raise ValueError(f"{base} is a model of another config than the base of {run.folder}")
    if run.base_digest is not None and sampled_digest(weights) != run.base_digest:
        raise ValueError(f"{base} holds other weights than the base that {run.folder} was trained over")
    return low_rank_merged(weights, run.adapter, run.added)
