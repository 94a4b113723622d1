"""Layouts: of many ranks' words exactly what each of them writes, and no more of it than there are ways of cutting."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.storage.layouts import Extent, cut, join, places, told_parts

Written = dict[str, tuple[str, Extent, Extent, Extent]]


def rows_of(shape: Extent, rank: int, ranks: int) -> tuple[Extent, Extent]:
    rows = -(-shape[0] // ranks)
    first = min(rank * rows, shape[0])
    return (first, *(0 for _ in shape[1:])), (min(rows, shape[0] - first), *shape[1:])


def of_rank(shapes: dict[str, Extent], rank: int, ranks: int, whole: dict[str, int]) -> Written:
    """Some are cut by rows, some are whole and written by one rank."""
    found: Written = {}
    for key, shape in sorted(shapes.items()):
        offsets, sizes = rows_of(shape, rank, ranks) if shape and key not in whole else ((0,) * len(shape), shape)
        if math.prod(sizes) and whole.get(key, rank) == rank:
            found[key] = ("F32" if len(shape) > 1 else "BF16", shape, offsets, sizes)
    return found


SHAPES = st.dictionaries(
    st.sampled_from([f"model.{name}" for name in "abcdefgh"]),
    st.lists(st.integers(1, 9), max_size=3).map(tuple),
    min_size=1,
)


@given(shapes=SHAPES, ranks=st.integers(1, 6), data=st.data())
def test_what_is_joined_is_what_each_rank_writes(shapes: dict[str, Extent], ranks: int, data: st.DataObject) -> None:
    rank = st.integers(0, ranks - 1)
    whole = {key: data.draw(rank) for key, shape in shapes.items() if not shape or data.draw(st.booleans())}
    written = [of_rank(shapes, number, ranks, whole) for number in range(ranks)]
    held = sorted(shapes)
    holds = [sorted(one) if data.draw(st.booleans()) else held for one in written]  # some do not hold all
    words = [told_parts(mine, one, reference=held) for mine, one in zip(holds, written, strict=True)]
    joined = join(words, held)
    files = [one for one in written if one]
    back: list[Written] = [{} for _ in files]
    for key, (dtype, shape, layout) in joined.tensors.items():
        for number, offsets, sizes in joined.layouts[layout]:
            assert key not in back[number]
            back[number][key] = (dtype, shape, offsets, sizes)
    assert back == files
    assert list(joined.tensors) == sorted(joined.tensors)
    assert len(set(joined.layouts)) == len(joined.layouts) <= len(joined.tensors)


def test_a_word_and_the_layouts_do_not_grow_with_tensors_that_are_cut_alike() -> None:
    sizes = {}
    for count in (10, 1000):
        shapes = {f"model.blocks.{number:04}.w": (64, 8) for number in range(count)}
        words = [told_parts(list(shapes), of_rank(shapes, r, 4, {}), reference=list(shapes)) for r in range(4)]
        assert len(join(words, list(shapes)).layouts) == 1
        sizes[count] = len(pickle.dumps(words[1]))
    assert sizes[1000] < sizes[10] + 64


@pytest.mark.parametrize("piece_bytes", [1, 64, 1 << 20])
def test_places_are_those_of_the_pieces_one_after_the_other(piece_bytes: int) -> None:
    parts = [("F32", (0, (0, 0), (7, 5))), ("BF16", None), ("BF16", (0, (3,), (9,))), ("F32", (0, (), ()))]
    found = places(parts, header_bytes=100, piece_bytes=piece_bytes)
    at, pieces = 100, 0
    for number, (dtype, part) in enumerate(parts):
        assert (found.starts[number], found.pieces[number]) == (at, pieces)
        if part is not None:
            cuts = list(cut(dtype, part[2], piece_bytes))
            assert sum(rows for _, rows in cuts) == (part[2][0] if part[2] else 1)
            at += math.prod(part[2]) * (4 if dtype == "F32" else 2)
            pieces += len(cuts)
    assert (found.starts[-1], found.pieces[-1]) == (at, pieces)
