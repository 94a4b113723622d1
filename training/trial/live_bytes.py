"""Bytes of the storages that are alive while a piece of code runs, and the most there were. Knows no model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts every storage that an operation returns until nothing refers to it; sees no scratch inside a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()  # of one alone, while it lives; 0: it has no bytes
        if key and key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._drop, key, storage.nbytes())

    def _drop(self, key: int, n_bytes: int) -> None:
        self._known.discard(key)
        self.now -= n_bytes

    def add_all(self) -> None:
        """Storages that there are already."""
        for found in gc.get_objects():
            if isinstance(found, Tensor):
                self.add(found)

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor):
                self.add(one)
        self.peak = max(self.peak, self.now)
        return out
