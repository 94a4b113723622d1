from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.training.data.index import HoldOut
from launchyard.training.data.prepare.split import PIECE_CHARS, Splitter, choose_holdout, cut_text

text = st.text(alphabet="ab \n☃", max_size=400)


@settings(max_examples=200, deadline=None)
@given(text, st.integers(1, 50), st.data())
def test_cut_loses_nothing_and_ignores_blocks(whole: str, size: int, data: st.DataObject) -> None:
    pieces = list(cut_text([whole], size))
    assert "".join(pieces) == whole
    assert all(0 < len(piece) <= size for piece in pieces)
    borders = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    blocks = [whole[a:b] for a, b in zip([0, *borders], [*borders, len(whole)], strict=True)]
    assert list(cut_text(blocks, size)) == pieces


def test_cut_prefers_paragraphs_then_lines_then_words() -> None:
    assert list(cut_text(["a b\nc d\n\ne f\ng hij"], 13)) == ["a b\nc d\n\n", "e f\ng hij"]
    assert list(cut_text(["a b c d\ne f g hij"], 13)) == ["a b c d\n", "e f g hij"]
    assert list(cut_text(["a b c d e f g hij"], 13)) == ["a b c d e f", " g hij"]
    assert list(cut_text(["abcdefghijklmnopq"], 13)) == ["abcdefghijklm", "nopq"]


def held(documents: list[str], holdout: HoldOut, share: float, seed: int = 0) -> list[bool]:
    splitter = Splitter(holdout, share=share, seed=seed)
    return [piece.held_out for document in documents for piece in splitter.pieces([document])]


def test_many_documents_are_held_out_whole() -> None:
    draw = random.Random(1)
    texts = [str(draw.random()) * 10 for _ in range(5000)]
    holdout = choose_holdout(0.05, n_documents=400, total_bytes=10**9)
    assert holdout == HoldOut(unit="documents")
    chosen = held(texts, holdout, 0.05)
    assert 180 < sum(chosen) < 320
    by_text = dict(zip(texts, chosen, strict=True))
    shuffled = draw.sample(texts, len(texts))
    assert held(shuffled, holdout, 0.05) == [by_text[one] for one in shuffled], "a document's fate is its own"
    assert held(texts, holdout, 0.05, seed=1) != chosen
    more = held(texts, holdout, 0.1)
    assert all(b for a, b in zip(chosen, more, strict=True) if a), "a larger share adds to a smaller one"
    splitter = Splitter(holdout, share=0.05, seed=0)
    long = [splitter.pieces(["y" * (PIECE_CHARS * 2 + 1) + one]) for one in texts[:60]]
    fates = [[piece.held_out for piece in pieces] for pieces in long]
    assert all(len(fate) == 3 and len(set(fate)) == 1 for fate in fates)


@pytest.mark.parametrize("share", [0.05, 0.1, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("n_bytes", [30_000, 1_500_000, 30_000_000])
def test_a_share_of_few_documents_is_held_out_in_sections(share: float, n_bytes: int) -> None:
    for seed in range(3):
        holdout = choose_holdout(share, n_documents=1, total_bytes=n_bytes)
        assert holdout.unit == "sections"
        splitter = Splitter(holdout, share=share, seed=seed)
        size = {True: 0, False: 0}
        for piece in splitter.pieces(["A short line of text.\n\n" * (n_bytes // 23)]):
            size[piece.held_out] += len(piece.text)
        assert sum(size.values()) == n_bytes // 23 * 23
        assert size[True] == pytest.approx(n_bytes * share, rel=0.35)


def test_only_the_last_piece_ends_a_document() -> None:
    splitter = Splitter(HoldOut(unit="sections", section_chars=256), share=0.5, seed=0)
    assert [piece.last for piece in splitter.pieces(["x" * 1000])] == [False, False, False, True]
    assert list(splitter.pieces(["", ""])) == []


def test_nothing_is_held_out_unasked() -> None:
    holdout = choose_holdout(0.0, n_documents=0, total_bytes=10)
    assert not any(held(["x" * 3_000_000, "y"], holdout, 0.0))
