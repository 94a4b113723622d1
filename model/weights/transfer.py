"""Tensors from a file's layout to ours and back, by the overlaps that the rules of a family name."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from launchyard.model.layout import TensorShape
from launchyard.model.zoo.rules import Overlap
from launchyard.model.zoo.views import View, within

AHEAD_ELEMENTS = 64 * 1024 * 1024  # that are read ahead, and wait to be used


class Part(Protocol):
    """One of their tensors; see model/weights/stored/tensors.py."""

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self, views: Sequence[View]) -> Tensor: ...

    def release(self) -> None: ...


class Importer:
    """Our parameters, or some of their rows, out of their tensors, by the overlaps that the rules of a family name."""

    def __init__(
        self,
        overlaps: Iterable[Overlap],
        shapes: Mapping[str, TensorShape],
        stored: Mapping[str, Part],
        *,
        threads: int = 0,
    ) -> None:
        """`stored`: theirs by the keys of the rules. `threads`: that read ahead, for files in a store."""
        self._overlaps: dict[str, list[Overlap]] = {}
        self._ours_in: dict[str, list[str]] = {}
        for overlap in overlaps:
            self._overlaps.setdefault(overlap.ours, []).append(overlap)
            self._ours_in.setdefault(overlap.theirs, []).append(overlap.ours)
        self.shapes = shapes
        self._stored = stored
        self._threads = threads

    def get(self, key: str) -> Tensor:
        """A whole tensor on the CPU, contiguous: a view of theirs where the elements lie so, else a copy."""
        return self._read_group({key: range(self.shapes[key][0])})[key]

    def dtype(self, key: str) -> torch.dtype:
        """The type that `get` gives."""
        return self._stored[self._overlaps[key][0].theirs].dtype

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        """These rows of ours, each tensor once, those of one fused tensor together; reads no more than they need.

        Memory that was mapped for one is given back when the next is asked for.
        """
        groups = list(self._groups(wanted))
        for group, read in self._read_ahead(groups) if self._threads else ((g, self._read_group(g)) for g in groups):
            yield from read.items()
            read.clear()
            for theirs in self._theirs_of(group):
                self._stored[theirs].release()

    def _groups(self, wanted: Mapping[str, range]) -> Iterator[dict[str, range]]:
        """What shares a tensor of theirs, in the order of `wanted`, so that nothing is read twice."""
        seen: set[str] = set()
        for first in wanted:
            if first in seen:
                continue
            group = [first]
            seen.add(first)
            for key in group:  # which grows
                for theirs in self._theirs_of([key]):
                    more = [ours for ours in self._ours_in[theirs] if ours in wanted and ours not in seen]
                    group += dict.fromkeys(more)
                    seen.update(more)
            yield {key: wanted[key] for key in group}

    def _theirs_of(self, keys: Iterable[str]) -> dict[str, None]:
        return dict.fromkeys(overlap.theirs for key in keys for overlap in self._overlaps[key])

    def _read_ahead(self, groups: Sequence[dict[str, range]]) -> Iterator[tuple[dict[str, range], dict[str, Tensor]]]:
        with ThreadPoolExecutor(self._threads) as pool:
            begun: deque[tuple[dict[str, range], Future[dict[str, Tensor]]]] = deque()
            try:
                for group in groups:
                    begun.append((group, pool.submit(self._read_group, group)))
                    while len(begun) > self._threads or sum(self._size(g) for g, _ in begun) > AHEAD_ELEMENTS:
                        done, future = begun.popleft()
                        yield done, future.result()
                for done, future in begun:
                    yield done, future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _size(self, group: Mapping[str, range]) -> int:
        return sum(len(rows) * math.prod(self.shapes[key][1:]) for key, rows in group.items())

    def _read_group(self, group: Mapping[str, range]) -> dict[str, Tensor]:
        boxes = {key: list(self._boxes(key, rows)) for key, rows in group.items()}
        needed: dict[str, list[View]] = {}
        for of_key in boxes.values():
            for _, theirs, overlap in of_key:
                needed.setdefault(overlap.theirs, []).append(theirs)
        read = {theirs: self._stored[theirs].read(views) for theirs, views in needed.items()}
        return {key: self._assemble(key, rows, boxes[key], read) for key, rows in group.items()}

    def _boxes(self, key: str, rows: range) -> Iterator[tuple[View, View, Overlap]]:
        """The parts of the overlaps that lie in some rows of ours; ours counted from the first of them."""
        width = math.prod(self.shapes[key][1:])
        assert 0 <= rows.start <= rows.stop <= self.shapes[key][0], f"{key} has no rows {rows}"
        first = rows.start * width
        for overlap in self._overlaps[key]:
            for ours, theirs in within(overlap.ours_view, overlap.theirs_view, first, rows.stop * width):
                yield View(ours.shape, ours.strides, ours.offset - first), theirs, overlap

    def _assemble(
        self, key: str, rows: range, boxes: Sequence[tuple[View, View, Overlap]], read: Mapping[str, Tensor]
    ) -> Tensor:
        shape = (len(rows), *self.shapes[key][1:])
        if len(boxes) == 1 and boxes[0][0].is_whole(shape):
            _, theirs, overlap = boxes[0]
            found = _view(read[overlap.theirs], theirs).reshape(shape).contiguous()
            return found if not overlap.plus else found + overlap.plus
        made = torch.empty(shape, dtype=self.dtype(key))
        for ours, theirs, overlap in boxes:
            part = _view(read[overlap.theirs], theirs)
            _view(made, ours).copy_(part if not overlap.plus else part + overlap.plus)
        return made


class ImportedWeights:
    """Our parameters as the files of another program hold them. Nothing is read before it is asked for."""

    def __init__(self, importer: Importer) -> None:
        self._importer = importer

    def keys(self) -> list[str]:
        return list(self._importer.shapes)

    def shape(self, key: str) -> TensorShape:
        return self._importer.shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        """Of what `get` returns. Reads no tensor."""
        return self._importer.dtype(key)

    def get(self, key: str) -> Tensor:
        """A whole tensor on the CPU, contiguous."""
        return self._importer.get(key)

    def rows(self, wanted: Mapping[str, range]) -> Iterator[tuple[str, Tensor]]:
        """These rows of these tensors, each as `get` gives it; reads what they need and nothing twice."""
        return self._importer.rows(wanted)


def first_axis(views: Sequence[View], shape: TensorShape) -> tuple[int, int]:
    """The places of the first axis that hold all of these elements."""
    width = math.prod(shape[1:])
    return min(view.offset for view in views) // width, -(-max(view.end() for view in views) // width)


def _view(tensor: Tensor, view: View) -> Tensor:
    return tensor.as_strided(view.shape, view.strides, tensor.storage_offset() + view.offset)
