"""Where the pieces of a sharded set lie: it follows from which rank wrote which part of each tensor.

A file holds the parts of one rank, tensor after tensor in the order of their keys, each cut into pieces of whole rows;
its last entry holds the hashes of its pieces, in the same order. Tensors that are cut alike share one list of parts, a
layout. Knows no files and no torch.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from launchyard.storage.safetensors import DTYPE_BYTES

HASHES = "xxh3"  # the last entry of a file; those of pieces are called `key@offset,…`
HASH_BYTES = 8
Extent = tuple[int, ...]
Part = tuple[int, Extent, Extent]  # number of its file, first element of each axis, elements of each axis
Layout = tuple[Part, ...]


def piece_rows(dtype: str, sizes: Extent, piece_bytes: int) -> int:
    """Rows of each piece of a part, but for the last; a scalar has one."""
    return max(1, piece_bytes // max(1, DTYPE_BYTES[dtype] * math.prod(sizes[1:])))


def cut(dtype: str, sizes: Extent, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each piece of a part; a scalar is one piece."""
    total = sizes[0] if sizes else 1
    rows = piece_rows(dtype, sizes, piece_bytes)
    for first in range(0, total, rows):
        yield first, min(rows, total - first)


def piece_name(key: str, offsets: Extent) -> str:
    return f"{key}@{','.join(map(str, offsets))}"


def common(offsets: Extent, sizes: Extent, others: Extent, other_sizes: Extent) -> tuple[Extent, Extent] | None:
    """What two boxes of a tensor have in common: first element and elements of each axis; None if that is nothing."""
    first = tuple(map(max, offsets, others))
    last = (min(a + n, b + m) for a, n, b, m in zip(offsets, sizes, others, other_sizes, strict=True))
    extent = tuple(stop - start for start, stop in zip(first, last, strict=True))
    return (first, extent) if all(count > 0 for count in extent) else None


@dataclass(frozen=True)
class FilePlaces:
    """Of each tensor, by its number: the first byte of its part in a file, and the number of its first piece there."""

    starts: array[int]
    pieces: array[int]


def places(parts: Iterable[tuple[str, Part | None]], *, header_bytes: int, piece_bytes: int) -> FilePlaces:
    """The places in one file of all tensors, in order: each as its dtype and its part there, if it has one.

    One place more than there are tensors: the end of the last is where the hashes begin.
    """
    starts = array("Q", [header_bytes])
    pieces = array("Q", [0])
    for dtype, part in parts:
        n_bytes = DTYPE_BYTES[dtype] * math.prod(part[2]) if part else 0
        rows = (part[2][0] if part[2] else 1) if part else 0
        starts.append(starts[-1] + n_bytes)
        pieces.append(pieces[-1] + (-(-rows // piece_rows(dtype, part[2], piece_bytes)) if part else 0))
    return FilePlaces(starts, pieces)


# -- from the ranks' own words ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RankParts:
    """The parts that one rank writes: `kinds` are the distinct (dtype, shape, offsets, sizes), and `of` holds for each
    key the number of its kind, from 1; 0: the rank writes nothing of it.

    `keys`: None for those of rank 0. Small: tensors that are cut alike are of one kind.
    """

    kinds: tuple[tuple[str, Extent, Extent, Extent], ...]
    of: bytes  # an array("H"), compressed
    keys: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Joined:
    """What all ranks write: (dtype, shape, number of the layout) by key, in order, and the layouts."""

    tensors: dict[str, tuple[str, Extent, int]]
    layouts: tuple[Layout, ...]


def told_parts(
    held: Sequence[str], written: dict[str, tuple[str, Extent, Extent, Extent]], *, reference: Sequence[str]
) -> RankParts:
    """What a rank tells of its parts: `held` are its keys in order, `written` what it writes of them."""
    import zlib

    kinds = {kind: number for number, kind in enumerate(dict.fromkeys(written.values()), start=1)}
    of = array("H", (kinds[written[key]] if key in written else 0 for key in held))
    keys = None if list(held) == list(reference) else tuple(held)
    return RankParts(tuple(kinds), zlib.compress(of.tobytes()), keys)


def join(ranks: Sequence[RankParts], reference: Sequence[str]) -> Joined:
    """Joins the words of all ranks. Files are numbered by the ranks that write one, in order.

    Time and memory grow with the ranks and the ways of cutting, not with the pieces.
    """
    keys = sorted({key for one in ranks for key in one.keys or ()} | {*reference})
    numbers = _numbers(ranks, keys, reference)
    groups = _groups(numbers, len(keys))
    example = {group: at for at, group in reversed(list(enumerate(groups)))}
    facts: dict[int, tuple[str, Extent]] = {}
    parts: dict[int, list[Part]] = {group: [] for group in example}
    file = 0
    for one, number_of in zip(ranks, numbers, strict=True):
        for group, at in example.items():
            if number := number_of[at]:
                dtype, shape, offsets, sizes = one.kinds[number - 1]
                facts[group] = dtype, shape
                parts[group].append((file, offsets, sizes))
        file += bool(one.kinds)
    layout_of = {group: tuple(listed) for group, listed in parts.items()}
    layouts = {layout: number for number, layout in enumerate(dict.fromkeys(filter(None, layout_of.values())))}
    tensors = {
        key: (*facts[group], layouts[layout_of[group]])
        for key, group in zip(keys, groups, strict=True)
        if layout_of[group]
    }
    return Joined(tensors, tuple(layouts))


def _numbers(ranks: Sequence[RankParts], keys: Sequence[str], reference: Sequence[str]) -> list[array[int]]:
    """Of each rank the number of the kind of each of `keys`. Ranks that say the same share one list."""
    import zlib

    place = {key: at for at, key in enumerate(keys)}
    known: dict[tuple[bytes, tuple[str, ...] | None], array[int]] = {}
    found = []
    for one in ranks:
        word = (one.of, one.keys)
        if word not in known:
            told = array("H", zlib.decompress(one.of))
            known[word] = array("H", bytes(2 * len(keys)))
            for key, number in zip(reference if one.keys is None else one.keys, told, strict=True):
                known[word][place[key]] = number
        found.append(known[word])
    return found


def _groups(numbers: Sequence[array[int]], n_keys: int) -> list[int]:
    """The number of a group for each key: keys of one group are of one kind on every rank."""
    groups = [0] * n_keys
    for number_of in {id(one): one for one in numbers}.values():
        finer: dict[tuple[int, int], int] = {}
        groups = [finer.setdefault(pair, len(finer)) for pair in zip(groups, number_of, strict=True)]
    return groups
