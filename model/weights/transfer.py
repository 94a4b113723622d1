"""Tensors from a file's layout to ours and back, by the pieces that the rules of a family name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from launchyard.model.layout import TensorShape
from launchyard.model.zoo.rules import Piece
from launchyard.model.zoo.views import View


def to_ours(pieces: Sequence[Piece], shape: TensorShape, read: Callable[[str], Tensor]) -> Tensor:
    """One of our parameters out of theirs, contiguous: a view of theirs where the elements lie so, else a copy.

    read: gives one of their tensors whole.
    """
    first = pieces[0]
    if len(pieces) == 1 and first.ours_view.is_whole(shape):
        found = _view(read(first.theirs), first.theirs_view).reshape(shape).contiguous()
        return found if not first.plus else found + first.plus
    made: Tensor | None = None
    for piece in pieces:
        part = _view(read(piece.theirs), piece.theirs_view)
        if made is None:
            made = torch.empty(shape, dtype=part.dtype)
        _view(made, piece.ours_view).copy_(part if not piece.plus else part + piece.plus)
    assert made is not None
    return made


def to_theirs(
    pieces: Iterable[Piece], shapes: dict[str, TensorShape], tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Their tensors, each as soon as all of ours have come that it holds; the inverse of to_ours."""
    by_name: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_name.setdefault(piece.ours, []).append(piece)
    waiting: dict[str, tuple[Tensor, int]] = {}
    for name, tensor in tensors:
        whole = tensor.contiguous()
        for piece in by_name[name]:
            shape = shapes[piece.theirs]
            part = _view(whole, piece.ours_view)
            part = part if not piece.plus else part - piece.plus
            if piece.theirs_view.is_whole(shape):
                yield piece.theirs, part.reshape(shape)
                continue
            made, lacking = waiting.pop(piece.theirs, (None, math.prod(shape)))
            made = torch.empty(shape, dtype=tensor.dtype) if made is None else made
            _view(made, piece.theirs_view).copy_(part)
            lacking -= piece.theirs_view.size
            if lacking:
                waiting[piece.theirs] = made, lacking
            else:
                yield piece.theirs, made
    assert not waiting, f"no rule fills all of {sorted(waiting)}"


def _view(tensor: Tensor, view: View) -> Tensor:
    return tensor.as_strided(view.shape, view.strides, tensor.storage_offset() + view.offset)
