"""Tensors from a file's layout to ours and back, by the overlaps that the rules of a family name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from launchyard.model.layout import TensorShape
from launchyard.model.zoo.rules import Overlap
from launchyard.model.zoo.views import View


def to_ours(overlaps: Sequence[Overlap], shape: TensorShape, read: Callable[[str], Tensor]) -> Tensor:
    """One of our parameters out of theirs, contiguous: a view of theirs where the elements lie so, else a copy.

    read: gives one of their tensors whole.
    """
    first = overlaps[0]
    if len(overlaps) == 1 and first.ours_view.is_whole(shape):
        found = _view(read(first.theirs), first.theirs_view).reshape(shape).contiguous()
        return found if not first.plus else found + first.plus
    made: Tensor | None = None
    for overlap in overlaps:
        part = _view(read(overlap.theirs), overlap.theirs_view)
        if made is None:
            made = torch.empty(shape, dtype=part.dtype)
        _view(made, overlap.ours_view).copy_(part if not overlap.plus else part + overlap.plus)
    assert made is not None
    return made


def _view(tensor: Tensor, view: View) -> Tensor:
    return tensor.as_strided(view.shape, view.strides, tensor.storage_offset() + view.offset)
