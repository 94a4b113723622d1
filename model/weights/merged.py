"""Weights of a base with an adapter in them: what a run with an adapter, or a base and an adapter folder, stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from launchyard.model.adapt.merge import Added, Merge
from launchyard.model.adapt.targets import updates
from launchyard.model.adapter import LOW_RANK, Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes

if TYPE_CHECKING:
    from launchyard.model.weights.load import Weights

TABLE = "embed.weight"
HEAD = "lm_head.weight"


class MergedWeights:
    """Tensors of `base`, those with an update in fp32. A tied head is one of its own where one of both has an update.

    ValueError for a kind whose changes are none of weights.
    """

    def __init__(self, base: Weights, adapter: Adapter, added: Added, *, untied: bool = False) -> None:
        """untied: the table was trained, and the tied head was not, or the other way round."""
        if adapter.kind not in LOW_RANK:
            raise ValueError(f"an adapter of kind {adapter.kind} adds to what a model computes, not to its weights")
        self._base = base
        self._added = added
        self._tied = base.config.tie_embeddings
        self._merges = {
            f"{name}.weight": Merge(name, update, adapter.kind == "dora")
            for name, update in updates(parameter_shapes(base.config), adapter).items()
        }
        tied = self._tied and not (untied or TABLE in self._merges or HEAD in self._merges)
        self.config: ModelConfig = base.config.model_copy(update={"tie_embeddings": tied})

    def keys(self) -> list[str]:
        return list(parameter_shapes(self.config))

    def dtype(self, key: str) -> torch.dtype:
        return torch.float32 if key in self._merges else self._base.dtype(self._source(key))

    def get(self, key: str) -> Tensor:
        return next(self.rows({key: range(parameter_shapes(self.config)[key][0])}))[1]

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        own = {key: rows for key, rows in wanted.items() if self._source(key) == key}
        for key, found in self._base.rows(own):
            yield key, self._merged(key, found, own[key])
        for key in wanted.keys() - own.keys():  # a head that was tied
            _, found = next(self._base.rows({TABLE: wanted[key]}))
            yield key, self._merged(key, found, wanted[key])

    def _source(self, key: str) -> str:
        return TABLE if key == HEAD and self._tied else key

    def _merged(self, key: str, found: Tensor, rows: range) -> Tensor:
        merge = self._merges.get(key)
        return found if merge is None else merge.rows(found, rows, self._added)
