"""A part of a tensor as shape, strides and offset: what one tensor and another have in common, whatever their axes.

Pure arithmetic, as torch's views and numpy's do it. Light; touches no tensor.
"""

from __future__ import annotations

import itertools
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

    def stretches(self, gap: int) -> Iterator[tuple[int, int]]:
        """Offset and length of stretches of memory, in their order, that hold all elements.

        They hold others as well where these lie in gaps no longer than `gap`.
        """
        axes = sorted(zip(self.strides, self.shape, strict=True), reverse=True)
        length = 1
        while axes and axes[-1][0] - length <= gap:
            stride, count = axes.pop()
            length += (count - 1) * stride
        for place in itertools.product(*(range(count) for _, count in axes)):
            yield self.offset + sum(n * stride for n, (stride, _) in zip(place, axes, strict=True)), length

    def end(self, axis: int = 0) -> int:
        """One more than the largest offset of an element that is the first along all axes before `axis`."""
        return (
            self.offset
            + 1
            + sum((n - 1) * stride for n, stride in zip(self.shape[axis:], self.strides[axis:], strict=True))
        )


def within(view: View, other: View, start: int, stop: int, axis: int = 0) -> Iterator[tuple[View, View]]:
    """The elements of a view whose offsets lie in [start, stop), box by box, each with the same part of `other`.

    The two have equal shapes.
    """
    if not view.size or view.offset >= stop or view.end() <= start:
        return
    if view.offset >= start and view.end() <= stop:
        yield view, other
        return
    stride = view.strides[axis]
    reach = view.end(axis + 1) - view.offset  # of the elements at one place of this axis
    first = max(0, -(-(start - view.offset) // stride))  # the first place that lies inside with all of its elements
    last = min(view.shape[axis], (stop - view.offset - reach) // stride + 1)
    first, last = (first, last) if first < last else (first, first)
    partly_before = range(max(0, (start - view.offset - reach) // stride + 1), min(first, view.shape[axis]))
    partly_behind = range(max(last, 0), min(view.shape[axis], -(-(stop - view.offset) // stride)))
    for place in partly_before:
        yield from within(view.cut(axis, place, 1), other.cut(axis, place, 1), start, stop, axis + 1)
    if first < last:
        yield view.cut(axis, first, last - first), other.cut(axis, first, last - first)
    for place in partly_behind:
        yield from within(view.cut(axis, place, 1), other.cut(axis, place, 1), start, stop, axis + 1)


def whole(shape: TensorShape) -> View:
    """All elements of a tensor."""
    return View(shape, tuple(math.prod(shape[n + 1 :]) for n in range(len(shape))))
