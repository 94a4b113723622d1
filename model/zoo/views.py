"""A part of a tensor as shape, strides and offset: what one tensor and another have in common, whatever their axes.

Pure arithmetic, as torch's views and numpy's do it. Light; touches no tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from launchyard.model.layout import TensorShape


@dataclass(frozen=True)
class View:
    """Elements of a tensor that lies in memory row by row; all in units of elements."""

    shape: TensorShape
    strides: TensorShape
    offset: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def split(self, axis: int, sizes: TensorShape) -> View:
        """Makes several axes of one; ValueError if its length is not the product of `sizes`."""
        axis %= len(self.shape)
        if math.prod(sizes) != self.shape[axis]:
            raise ValueError(f"an axis of {self.shape[axis]} is not {' x '.join(map(str, sizes))}")
        strides = tuple(self.strides[axis] * math.prod(sizes[n + 1 :]) for n in range(len(sizes)))
        return View(
            (*self.shape[:axis], *sizes, *self.shape[axis + 1 :]),
            (*self.strides[:axis], *strides, *self.strides[axis + 1 :]),
            self.offset,
        )

    def cut(self, axis: int, start: int, length: int) -> View:
        """Elements [start, start + length) of an axis; ValueError if it does not reach that far."""
        axis %= len(self.shape)
        if not 0 <= start <= start + length <= self.shape[axis]:
            raise ValueError(f"{start} to {start + length} are not in an axis of {self.shape[axis]}")
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        return View(shape, self.strides, self.offset + start * self.strides[axis])

    def at(self, axis: int, index: int) -> View:
        """One element of an axis, which is gone then."""
        axis %= len(self.shape)
        one = self.cut(axis, index, 1)
        return View(
            (*one.shape[:axis], *one.shape[axis + 1 :]), (*one.strides[:axis], *one.strides[axis + 1 :]), one.offset
        )

    def swap(self, first: int, second: int) -> View:
        """Two axes in each other's place."""
        order = list(range(len(self.shape)))
        order[first] = second
        order[second] = first
        return View(tuple(self.shape[n] for n in order), tuple(self.strides[n] for n in order), self.offset)

    def is_whole(self, shape: TensorShape) -> bool:
        """True if these are all elements of a tensor of this shape, in its own order."""
        return self.offset == 0 and self.size == math.prod(shape) and self.is_contiguous()

    def is_contiguous(self) -> bool:
        """True if the elements lie one behind the other, in order."""
        expected = 1
        for length, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if length != 1 and stride != expected:
                return False
            expected *= length
        return True

    def runs(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Offset and length of the stretches of memory that hold elements [start, stop), counted in this view's order.

        Stretches that touch are one.
        """
        stop = self.size if stop is None else stop
        held: tuple[int, int] | None = None
        for offset, length in self._pieces(0, self.offset, start, stop):
            if held is not None and held[0] + held[1] == offset:
                held = held[0], held[1] + length
                continue
            if held is not None:
                yield held
            held = offset, length
        if held is not None:
            yield held

    def _pieces(self, axis: int, offset: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if start >= stop:
            return
        rest = View(self.shape[axis:], self.strides[axis:])
        if rest.is_contiguous():
            yield offset + start, stop - start
            return
        inner = math.prod(self.shape[axis + 1 :])
        for index in range(start // inner, -(-stop // inner)):
            begin = index * inner
            low = max(start, begin) - begin
            high = min(stop, begin + inner) - begin
            yield from self._pieces(axis + 1, offset + index * self.strides[axis], low, high)


def whole(shape: TensorShape) -> View:
    """All elements of a tensor."""
    return View(shape, tuple(math.prod(shape[n + 1 :]) for n in range(len(shape))))
