"""What this process holds of a model, and where: all of it, layers on several devices, or the share of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.network.transformer import Transformer
from launchyard.model.parallel.layers import SpreadTransformer, place_of
from launchyard.model.parallel.network import RankTransformer
from launchyard.model.parallel.ranks import Ranks
from launchyard.model.parallel.share import Cut, cut_of, is_of_first_rank


class Holding(Protocol):
    """Of one model. Names are those of its parameters."""

    transformer: Transformer  # empty, on the meta device

    def wanted(self) -> dict[str, range]:
        """The rows to read."""
        ...

    def taken(self, key: str, rows: Tensor) -> Tensor:
        """What is kept of them."""
        ...

    def device(self, key: str) -> torch.device: ...


class WholeModel:
    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._config = config
        self._device = device
        with torch.device("meta"):
            self.transformer = Transformer(config)

    def wanted(self) -> dict[str, range]:
        return {key: range(shape[0]) for key, shape in parameter_shapes(self._config).items()}

    def taken(self, key: str, rows: Tensor) -> Tensor:
        return rows

    def device(self, key: str) -> torch.device:
        return self._device


class LayersOverDevices(WholeModel):
    def __init__(self, config: ModelConfig, devices: Sequence[torch.device]) -> None:
        self._config = config
        with torch.device("meta"):
            self.transformer = SpreadTransformer(config, devices)
        self._homes = self.transformer.homes

    def device(self, key: str) -> torch.device:
        return self._homes[place_of(key)]


class ShareOfRank(WholeModel):
    """Rows are read where they are cut; where columns are, the whole matrix is, one at a time."""

    def __init__(self, config: ModelConfig, ranks: Ranks, device: torch.device) -> None:
        self._config = config
        self._ranks = ranks
        self._device = device
        self._shapes = parameter_shapes(config)
        with torch.device("meta"):
            self.transformer = RankTransformer(config, ranks)

    def wanted(self) -> dict[str, range]:
        found = {}
        for key, rows in super().wanted().items():
            cut = self._cut(key)
            if self._ranks.is_first or not is_of_first_rank(key):
                found[key] = rows if cut is None or cut.axis else cut.places
        return found

    def taken(self, key: str, rows: Tensor) -> Tensor:
        cut = self._cut(key)
        if cut is None or cut.axis == 0:
            return rows
        return rows.narrow(cut.axis, cut.places.start, len(cut.places)).contiguous()

    def _cut(self, key: str) -> Cut | None:
        return cut_of(self._config, key, self._shapes[key], self._ranks.rank, self._ranks.count)
