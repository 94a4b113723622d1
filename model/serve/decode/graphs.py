"""Steps that are recorded once for each size, and then played. Knows no GPU: a recorder does.

Untried on a GPU: none was at hand. What a graph may hold is tested with a recorder of operations on a CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.positions import rotation_regime
from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.decode.eager import EagerDecoding
from launchyard.model.serve.decode.fixed import EXACT_ROWS, FixedStep, rounded_length, rounded_rows

MOST_GRAPHS = 64
_WARM_UPS = 2  # steps of a size before it is recorded: kernels are chosen and their memory is taken in them


class GraphRecorder(Protocol):
    """Its graphs share memory: they are played one at a time."""

    def warm(self, run: Callable[[], None]) -> None:
        """Runs it, where it would be recorded."""
        ...

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What starts all that `run` would start, with the same memory. `run` itself may have no effect."""
        ...


@dataclass
class _Sized:
    """A step of one size."""

    step: FixedStep
    n_warm: int = 0
    play: Callable[[], None] | None = None


class GraphDecoding:
    """The first steps of a size are run, the later ones are played. Prompts and guesses are no such steps.

    insists: an error of the recorder is one of the step; else the rest is computed without graphs, and `words` says so.
    """

    def __init__(
        self,
        model: Transformer,
        cache: Cache,
        new_recorder: Callable[[], GraphRecorder],
        *,
        n_slots: int,
        insists: bool = False,
    ) -> None:
        """cache: of n_slots + spare_rows(n_slots) rows. new_recorder: called again where the cache has moved."""
        assert cache.n_slots == n_slots + spare_rows(n_slots)
        self.cache = cache
        self._model = model
        self._n_slots = n_slots
        self._new_recorder = new_recorder
        self._insists = insists
        self._sizes: dict[tuple[int | None, int, int], _Sized] = {}  # the last used one last
        self._addresses: list[int] = []
        self._instead: EagerDecoding | None = None
        self._out = torch.empty(n_slots, model.config.vocab_size, dtype=torch.float32, device=cache.device)

    @property
    def words(self) -> str:
        return "by CUDA graphs" if self._instead is None else self._instead.words

    @property
    def n_graphs(self) -> int:
        return sum(sized.play is not None for sized in self._sizes.values())

    def step(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        if self._instead is not None:
            return self._instead.step(tokens, lengths)
        sized = self._of_size(len(tokens), max(lengths) + 1)
        out = self._out[: sized.step.inputs.shape[1]]
        sized.step.fill(tokens, lengths)
        try:
            self._run(sized, out)
        except RuntimeError as error:
            if self._insists:
                raise
            self._go_on_without(error)
            return self.step(tokens, lengths)
        return out[: len(tokens)]

    def _of_size(self, n_rows: int, length: int) -> _Sized:
        if (addresses := self._found_addresses()) != self._addresses:
            self._sizes.clear()
            self._addresses = addresses
            self._recorder = self._new_recorder()
        n_rows = rounded_rows(n_rows, self._n_slots)
        length = rounded_length(length, self.cache.length)
        key = (rotation_regime(self._model.config, self.cache.longest), n_rows, length)
        sized = self._sizes.pop(key, None)
        if sized is None:
            step = FixedStep(self._model, self.cache, n_rows=n_rows, length=length, spare_row=self._n_slots)
            sized = _Sized(step)
        self._sizes[key] = sized
        if len(self._sizes) > MOST_GRAPHS:
            del self._sizes[next(iter(self._sizes))]
        return sized

    def _found_addresses(self) -> list[int]:
        return [whole.data_ptr() for block in self.cache.blocks for whole in (block.whole_k, block.whole_v)]

    def _run(self, sized: _Sized, out: Tensor) -> None:
        def run() -> None:
            sized.step.run(out)

        if sized.play is None and sized.n_warm < _WARM_UPS:
            sized.n_warm += 1
            self._recorder.warm(run)
            return
        if sized.play is None:
            sized.play = self._recorder.record(run)
        sized.play()

    def _go_on_without(self, error: RuntimeError) -> None:
        why = str(_first_of(error)).strip().partition("\n")[0]
        self._sizes.clear()
        self._instead = EagerDecoding(self._model, self.cache, words=f"without CUDA graphs: {why}")
        warnings.warn(f"a step could not be recorded, so texts are written without CUDA graphs: {why}", stacklevel=2)


def _first_of(error: BaseException) -> BaseException:
    """The one that the others came of: the end of a recording that has failed is an error, too."""
    return error if error.__context__ is None else _first_of(error.__context__)


def spare_rows(n_slots: int) -> int:
    """Rows of a cache beyond its slots, for steps of more rows than there are texts."""
    return int(n_slots > EXACT_ROWS)
