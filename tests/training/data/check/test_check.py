"""The data doctor: every count is what is in the files, whatever the way they were read; and its memory has bounds."""

from __future__ import annotations

import gzip
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.training.data.check.findings import CorpusFindings
from launchyard.training.data.check.lengths import LengthTally
from launchyard.training.data.check.repeats import CorpusPart, RepeatFinder
from launchyard.training.data.check.text import TextCheck, check_text, shingles_of, signs_of
from launchyard.training.data.check.tokens import TokenCheck, check_tokens
from launchyard.training.data.prepare.encode import open_tokenizer
from launchyard.training.data.prepare.prepare import prepare
from tests.support.litdata_reader import write_chunks

LONG = " ".join(f"word{number}" for number in range(200))


def words(number: int, n: int = 60) -> str:
    draw = random.Random(number)
    return " ".join(str(draw.randrange(10**6)) for _ in range(n))


def write_rows(path: Path, texts: list[str]) -> str:
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    return str(path)


def check(sources: list[str], tokenizer: str | None = None, **wanted: Any) -> CorpusFindings:
    made = None if tokenizer is None else open_tokenizer(tokenizer, eos=None)
    return check_text(sources, TextCheck(**{"near": False, **wanted}), tokenizer=made)


# -- text ------------------------------------------------------------------------------------------------------------
def test_every_fault_has_its_place_and_none_ends_the_check(tmp_path: Path) -> None:
    rows = tmp_path / "a.jsonl"
    rows.write_bytes(b'{"text": "good"}\n\n{no\n{"text": "bad \xff"}\n{"other": 1}\n{"text": ""}\n{"text": "fine"}\n')
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"cut" * 1000)[:-9])
    (tmp_path / "d.txt").write_text("whole")
    found = check([str(tmp_path)])
    places = [(Path(one.file).name, one.line) for one in found.rejects.listed]
    assert places == [("a.jsonl", 3), ("a.jsonl", 4), ("a.jsonl", 5), ("b.txt", None), ("c.txt.gz", None)]
    reasons = [one.reason for one in found.rejects.listed]
    assert all(said in reason for said, reason in zip(
        ("is not JSON", "utf-8", "no key 'text'", "not UTF-8", "is cut"), reasons, strict=True
    ))  # fmt: skip
    assert (found.rejects.count, found.empty, found.total) == (5, 1, 3)


def test_rejects_are_all_counted_and_few_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{no\n" * 5000 + '{"text": "x"}\n')
    found = check([str(tmp_path / "a.jsonl")])
    assert (found.rejects.count, len(found.rejects.listed)) == (5000, 50)


def test_copies_are_found_across_files_and_kinds(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [words(1), words(2), words(1)])
    (tmp_path / "b.txt").write_text(words(2))
    found = check([str(tmp_path)])
    pairs = {(Path(one.place).name, Path(one.like).name) for one in found.alike}
    assert pairs == {("a.jsonl:3", "a.jsonl:1"), ("b.txt", "a.jsonl:2")}
    assert (found.duplicates_exact, found.overlap_exact) == (2, None)
    assert all(one.similarity == 1.0 and not one.crosses for one in found.alike)


def test_signs_and_control_tokens(tmp_path: Path, tokenizer_file: str) -> None:
    texts = ["fine\r\n\ttext", "a \0 b \0", "x \x07 <|endoftext|> y <|endoftext|>", "lost \ufffd"]
    found = check([write_rows(tmp_path / "a.jsonl", texts)], tokenizer_file)
    signs = {one.what.split(",")[0]: (one.count, one.documents, one.first[-1]) for one in found.control_characters}
    assert signs == {"NUL": (2, 1, "2"), "control character": (1, 1, "3"), "U+FFFD": (1, 1, "4")}
    (token,) = found.control_tokens
    assert (token.what, token.count, token.documents) == ("<|endoftext|>", 2, 1)
    assert signs_of("\t\n\r plain ü 文") == {}


def test_lengths_in_tokens_are_those_that_prepare_writes(tmp_path: Path, tokenizer_file: str, novel: str) -> None:
    """Of documents of many pieces, too."""
    texts = [novel[start : start + 100 + start // 3] for start in range(0, 60_000, 2000)]
    source = write_rows(tmp_path / "a.jsonl", texts)
    (tmp_path / "long.txt").write_text(novel[:400_000] * 4)
    found = check([source, str(tmp_path / "long.txt")], tokenizer_file, seq_len=500)
    made = prepare([source, str(tmp_path / "long.txt")], tokenizer=tokenizer_file, out=str(tmp_path / "out"))
    tokens, in_bytes = found.lengths
    assert tokens.total + made.documents == made.tokens  # an end for each
    folder = check_tokens(str(tmp_path / "out"), TokenCheck(seq_len=500, near=False)).lengths[0]
    assert tokens == folder
    assert in_bytes.total == sum(len(text.encode()) for text in [*texts, novel[:400_000] * 4])


@pytest.mark.parametrize("texts", [400, 3])
def test_held_out_text_that_is_trained_on(tmp_path: Path, texts: int) -> None:
    """By a share, as prepare would hold it out, copies share the fate; so only other text overlaps."""
    source = write_rows(tmp_path / "a.jsonl", [*map(words, range(texts)), *map(words, range(texts))])
    by_share = check([source], validation=0.2)
    if texts == 3:
        assert by_share.overlap_exact is None and any("too few documents" in limit for limit in by_share.limits)
    else:
        assert by_share.overlap_exact == 0
        assert 60 < by_share.documents["validation"] < 260
    held = write_rows(tmp_path / "held.jsonl", [words(1), words(1), words(999)])
    assert check([source], against=(held,)).overlap_exact == 2
    assert check([held], against=(source,)).overlap_exact == 2  # two copies of one text, each held out


def test_nothing_is_written(tmp_path: Path, tokenizer_file: str) -> None:
    source = write_rows(tmp_path / "a.jsonl", [words(1)])
    before = sorted(tmp_path.rglob("*"))
    check([source], tokenizer_file)
    assert sorted(tmp_path.rglob("*")) == before


# -- prepared folders ------------------------------------------------------------------------------------------------
def test_a_prepared_folder_has_the_repeats_of_its_text(tmp_path: Path, tokenizer_file: str) -> None:
    texts = [words(number % 150) for number in range(400)]
    source = write_rows(tmp_path / "a.jsonl", texts)
    prepare([source], tokenizer=tokenizer_file, out=str(tmp_path / "out"), validation=0.2, chunk_tokens=4096)
    text = check([source], tokenizer_file, validation=0.2)
    found = check_tokens(str(tmp_path / "out"), TokenCheck(near=False))
    assert found.documents == text.documents
    assert found.duplicates_exact == text.duplicates_exact == 250
    assert found.overlap_exact == 0
    assert found.lengths == text.lengths[:1]


def test_control_ids_in_bare_chunks(tmp_path: Path, tokenizer_file: str) -> None:
    """Of another tool's making; its tokenizer has to be named."""
    raw = json.loads(Path(tokenizer_file).read_text())
    pad = {**raw["added_tokens"][0], "id": 2048, "content": "<pad>"}

    raw["added_tokens"].append(pad)
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    eos = open_tokenizer(tokenizer_file, eos=None).eos_id
    write_chunks(tmp_path / "bare", [5, 6, eos, 7, 2048, 2048, 8, eos, 5, 6, eos, 9], chunk=4)
    with pytest.raises(ValueError, match="name its tokenizer with --tokenizer"):
        check_tokens(str(tmp_path / "bare"), TokenCheck(near=False))
    found = check_tokens(str(tmp_path / "bare"), TokenCheck(str(tmp_path / "tokenizer.json"), near=False))
    (token,) = found.control_tokens
    assert (token.what, token.count, token.documents) == ("<pad>", 2, 1)
    assert (found.total, found.duplicates_exact) == (4, 1)


# -- parts -----------------------------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=300), st.integers(0, 10**4))
def test_lengths(lengths: list[int], limit: int) -> None:
    tally = LengthTally("bytes", limit=limit)
    for length in lengths:
        tally.add(length)
    found = tally.summary()
    assert (found.documents, found.total) == (len(lengths), sum(lengths))
    assert (found.shortest, found.longest) == (min(lengths), max(lengths))
    assert found.longer == sum(length > limit for length in lengths)
    assert sum(n for _, _, n in found.histogram) == len(lengths)
    for low, below, n in found.histogram:
        assert n == sum(low <= length < below for length in lengths)
    middle = statistics.median_low(lengths)
    assert middle * 31 / 32 - 1 <= found.percentiles["50%"] <= middle


def test_what_is_remembered_is_bounded() -> None:
    """Later documents are still compared with the first ones."""
    finder = RepeatFinder(near=False, exact_limit=3)
    for place, digest in enumerate([1, 2, 3, 4, 4, 1]):
        finder.add(place, "train", digest=digest, shingles=())
    assert (finder.found.exact, finder.found.not_remembered_exact) == (1, 2)


def test_copies_of_a_held_out_text_count_whichever_comes_first() -> None:
    for parts in (("validation", "validation", "train"), ("train", "validation", "validation")):
        finder = RepeatFinder(near=False)
        for place, part in enumerate(parts):
            finder.add(place, part, digest=1, shingles=())
        assert (finder.found.overlap_exact, finder.found.exact) == (2, 1)


def test_shingles_know_no_case_and_no_space() -> None:
    assert shingles_of("A b  c\nd e F") == {b"a b c d e", b"b c d e f"}
    assert shingles_of("one Two") == {b"one two"}


# -- near ones -------------------------------------------------------------------------------------------------------
def test_near_duplicates(tmp_path: Path) -> None:
    pytest.importorskip("rensa", reason="near duplicates need rensa")
    texts = [LONG, f"{LONG} and an end", LONG.upper(), words(1), words(2), LONG]
    source = write_rows(tmp_path / "a.jsonl", texts)
    held = write_rows(tmp_path / "held.jsonl", [f"a beginning {LONG}", words(3), words(2)])
    found = check([source], near=True, against=(held,))
    assert (found.duplicates_exact, found.duplicates_near) == (1, 2)
    assert (found.overlap_exact, found.overlap_near) == (1, 1)
    turned = check([held], near=True, against=(source,))
    assert (turned.overlap_exact, turned.overlap_near) == (1, 3)
    bounded = check([source], near=True, near_limit=1)
    assert bounded.duplicates_near == 2 and any("near" in limit for limit in bounded.limits)


@pytest.mark.parametrize(("changed", "split"), [(0.05, "train"), (0.5, "validation")])
def test_near_means_four_fifths(changed: float, split: CorpusPart) -> None:
    """Of 100 texts whose words were changed here and there, nearly all are found, or none."""
    pytest.importorskip("rensa", reason="near duplicates need rensa")
    finder = RepeatFinder(near=True)
    draw = random.Random(1)
    for number in range(100):
        text = words(number, 400).split()
        finder.add(2 * number, "train", digest=2 * number, shingles=shingles_of(" ".join(text)))
        start = draw.randrange(100)
        text[start : start + int(400 * changed)] = words(number + 5000, int(400 * changed)).split()
        finder.add(2 * number + 1, split, digest=2 * number + 1, shingles=shingles_of(" ".join(text)))
    assert finder.found.near is not None and finder.found.overlap_near is not None
    count = finder.found.near if split == "train" else finder.found.overlap_near
    assert count >= 95 if changed < 0.1 else count == 0


def test_without_the_package_nothing_is_left_out_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ValueError, match=r"need the package rensa.*--no-near"):
        RepeatFinder(near=True)
