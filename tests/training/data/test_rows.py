"""Rows of instructions on disk, in packs and in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest

from launchyard.launcher.data.rows_shown import shown_row
from launchyard.model.text.tokenizer import Tokenizer
from launchyard.storage.errors import CorruptError
from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.instruct.conversation import Row
from launchyard.training.data.mixed_reader import MixedReader
from launchyard.training.data.packs import pack_rows
from launchyard.training.data.prepare.rows import held_out, write_rows
from launchyard.training.data.reader import TokenReader
from launchyard.training.data.row_reader import RowReader
from launchyard.training.data.row_store import RowStore
from launchyard.training.data.token_store import TokenStore
from launchyard.training.spec import IGNORE_INDEX
from tests.support.litdata_reader import write_chunks
from tests.support.tiny_models import byte_tokenizer

SEQ_LEN = 32


def some_rows(n: int = 60, seed: int = 0) -> list[Row]:
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        length = int(draw.integers(3, SEQ_LEN + 2))
        trained = np.arange(length) >= int(draw.integers(1, length))
        ids = draw.integers(0, 1000, length)
        ids[0] = number  # each is another
        rows.append(Row(ids, trained, f"row {number}"))
    return rows


def singles(rows: Iterable[Row]) -> Iterator[tuple[Row]]:
    return ((row,) for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("rows"))
    write_rows(singles(some_rows()), out, chunk_tokens=200)
    return f"{out}/train"


def reader(folder: str, *, size: int = 6, **options: object) -> RowReader:
    return RowReader(RowStore(folder), seq_len=SEQ_LEN, global_batch_size=size, seed=3, **options)  # type: ignore[arg-type]


def test_rows_come_back_as_they_were_written(folder: str) -> None:
    store = RowStore(folder)
    assert len(store.lengths) == 60
    for number, row in enumerate(some_rows()):
        found = store.row(number)
        assert (found.ids.tolist(), found.trained.tolist()) == (row.ids.tolist(), row.trained.tolist())


def test_an_altered_length_is_found(tmp_path: Path) -> None:
    write_rows(singles(some_rows()), str(tmp_path), chunk_tokens=200)
    place = tmp_path / "train" / "rows.npy"
    raw = bytearray(place.read_bytes())
    raw[-4] ^= 1
    place.write_bytes(raw)
    with pytest.raises(CorruptError, match=r"rows\.npy"):
        RowStore(str(tmp_path / "train"))


@pytest.mark.parametrize("packing", [True, False])
def test_every_row_is_in_one_pack_of_each_epoch_and_packs_are_full(packing: bool) -> None:
    lengths = np.clip(np.random.default_rng(1).lognormal(5, 0.7, 4096).astype(np.int64), 5, 1024)
    epochs = [pack_rows(lengths, capacity=1024, seed=1, epoch=epoch, packing=packing) for epoch in (0, 1)]
    for packs in epochs:
        assert sorted(packs.rows.tolist()) == list(range(4096))
        assert max(int(lengths[packs[number]].sum()) for number in range(len(packs))) <= 1024
    assert epochs[0].rows.tolist() != epochs[1].rows.tolist()
    if packing:
        assert lengths.sum() / 1024 / len(epochs[0]) > 0.97


def test_a_row_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="pack"):
        pack_rows(np.array([5, 9]), capacity=8, seed=0, epoch=0)


def test_labels_are_shifted_inside_a_row_and_never_across(folder: str) -> None:
    batch = reader(folder).batch(0)
    rows = {int(row.ids[0]): row for row in some_rows()}
    assert batch.documents is not None
    for slot, lengths in enumerate(batch.documents):
        end = 0
        for length in lengths:
            row = rows[int(batch.inputs[slot, end])]
            wanted = np.where(row.trained, row.ids, IGNORE_INDEX)[1:]
            assert batch.inputs[slot, end : end + length].tolist() == row.ids[:-1].tolist()
            assert batch.labels[slot, end : end + length].tolist() == wanted.tolist()
            end += length
        assert (batch.labels[slot, end:] == IGNORE_INDEX).all()
    assert batch.n_valid == int((batch.labels != IGNORE_INDEX).sum()) > 0


@pytest.mark.parametrize("packing", [True, False])
def test_each_row_is_read_once_an_epoch_and_the_last_step_is_short(folder: str, packing: bool) -> None:
    one = reader(folder, size=7, packing=packing, epochs=2)
    seen: Counter[int] = Counter()
    empty = 0
    for step in range(one.n_samples):  # more than there are
        for position in range(step * 7, step * 7 + 7):
            rows = one.rows(position).tolist()
            seen.update(rows)
            empty += not rows
        if empty:
            break
    assert set(seen.values()) == {2}
    assert len(seen) == 60
    last = one.batch(step)
    assert last.documents is not None
    assert sum(not lengths for lengths in last.documents) == empty < 7
    assert one.batch(step + 1).n_valid == 0


def test_any_cut_of_a_step_and_any_start_give_the_same_rows_and_hash(folder: str) -> None:
    whole = reader(folder)
    for step in (7, 0, 3):  # 7 first: a resume begins in a later epoch
        batch = whole.batch(step)
        parts = [reader(folder).batch(step, slot, 2) for slot in (0, 2, 4)]
        assert sum(part.data_hash for part in parts) % 2**64 == batch.data_hash % 2**64
        assert [row for part in parts for row in part.inputs.tolist()] == batch.inputs.tolist()
        _, named = whole.plan(step, 0, 6, 1)
        assert named[0].tolist() == [int(whole.rows(step * 6 + slot)[0]) for slot in range(6)]


def test_tokens_of_a_step_are_those_of_its_documents_whatever_the_cut(folder: str) -> None:
    rows = reader(folder)
    mixed = MixedReader([reader(folder, size=1)], weights=[1.0], global_batch_size=6, seed=3)
    for step in range(3):
        whole = rows.batch(step)
        parts = [rows.batch(step, first, 2) for first in (0, 2, 4)]
        assert whole.documents is not None and whole.n_tokens == sum(sum(lengths) for lengths in whole.documents)
        assert whole.n_tokens == sum(part.n_tokens for part in parts) > whole.n_valid
        assert mixed.batch(step).n_tokens == whole.n_tokens


def test_the_hash_tells_what_is_trained_for(tmp_path: Path) -> None:
    rows = some_rows(4)
    other = [Row(rows[0].ids, np.arange(len(rows[0].ids)) > 0, ""), *rows[1:]]
    hashes = set()
    for name, some in {"a": rows, "b": other}.items():
        write_rows(singles(some), str(tmp_path / name), chunk_tokens=200)
        hashes.add(reader(str(tmp_path / name / "train")).batch(0).data_hash)
    assert len(hashes) == 2


@pytest.mark.parametrize("n", [2, 9, 400])
def test_held_out_rows_are_some_and_copies_stay_together(n: int) -> None:
    rows = [*some_rows(n), *some_rows(n)]
    parts: dict[bool, set[int]] = {True: set(), False: set()}
    for (row,), out in held_out(singles(rows), share=0.1, seed=5):
        parts[out].add(int(row.ids[0]))
    assert parts[True] and parts[False] and not parts[True] & parts[False]
    assert len(parts[True]) < 0.2 * n + 1


def test_all_pairs_of_a_question_are_held_out_together() -> None:
    held: dict[int, set[bool]] = {}
    pairs = [[Row(np.array([n, 5, 6, *end]), np.arange(3 + len(end)) > 2, "") for end in ((k,), (k + 1, 4))]
             for n in range(60) for k in (7, 20, 30)]  # fmt: skip
    for group, out in held_out(pairs, share=0.2, seed=1):
        held.setdefault(int(group[0].ids[0]), set()).add(out)
    assert {len(fates) for fates in held.values()} == {1}
    assert 0 < sum(fates == {True} for fates in held.values()) < 30


def test_a_row_without_labels_is_refused(tmp_path: Path) -> None:
    row = Row(np.arange(4), np.zeros(4, bool), "a.jsonl:3")
    with pytest.raises(ValueError, match=r"a\.jsonl:3"):
        write_rows([[row]], str(tmp_path), chunk_tokens=200)


def test_a_mixture_reads_each_source_in_its_own_order_by_weight(folder: str) -> None:
    def alone() -> RowReader:
        return reader(folder, size=1, packing=False)

    mixed = MixedReader([alone(), reader(folder, size=1)], global_batch_size=4, weights=[3, 1])
    sources, samples = mixed.plan(0, 0, 4, 60)
    counts = np.bincount(sources.ravel())
    assert abs(counts[0] - 180) <= 3
    expected = [int(alone().rows(position)[0]) for position in range(counts[0])]
    assert samples[sources == 0].tolist() == expected
    batch = mixed.batch(5, 1, 2)
    assert batch.inputs[:, 0].tolist() == samples[5, 1:3].tolist()
    end_to_end = MixedReader([alone(), alone()], global_batch_size=4, weights=None)
    assert end_to_end.n_samples == 120
    assert end_to_end.plan(15, 0, 1, 1)[0].tolist() == [[1]]


def test_tokens_of_rows_and_text_are_counted(folder: str, tmp_path: Path) -> None:
    """What each source gave is what the batches hold, over many epochs of each, with weights that change."""
    write_chunks(tmp_path / "text", list(range(700)), chunk=300)

    def parts() -> list[RowReader | TokenReader]:
        text = TokenReader([TokenStore(str(tmp_path / "text"))], seq_len=SEQ_LEN, global_batch_size=1)
        return [reader(folder, size=1), text]

    mixed = MixedReader(parts(), global_batch_size=5, weights=[3, 1], later=[(11, [0, 1]), (40, [1, 2])])
    sources, _ = mixed.plan(0, 0, 5, 90)
    assert (sources[11:40] == 1).all()
    expected = [0, 0]
    for step in range(90):
        assert mixed.tokens_read(step) == expected
        for slot in range(5):
            expected[int(sources[step, slot])] += mixed.batch(step, slot, 1).n_tokens
    fresh = MixedReader(parts(), global_batch_size=5, weights=[3, 1], later=[(11, [0, 1]), (40, [1, 2])])
    assert fresh.tokens_read(90) == expected
    alone = reader(folder, size=4, epochs=2.5)
    assert alone.tokens_read(1000) == [sum(alone.batch(step).n_tokens for step in range(200))]


def test_the_chunks_of_a_step_are_those_that_its_rows_lie_in(tmp_path: Path) -> None:
    write_rows(singles(some_rows()), "memory://rows", chunk_tokens=200)
    store = RowStore("memory://rows/train", cache=ChunkCache(str(tmp_path)))
    one = RowReader(store, seq_len=SEQ_LEN, global_batch_size=3, seed=3)
    bounds = np.array(store.starts[1:])
    expected: dict[int, set[int]] = {}
    for step in range(2, 6):
        for position in range(step * 3 + 1, step * 3 + 3):
            for row in one.rows(position):
                first = int(store.row_starts[row])
                last = first + int(store.lengths[row]) - 1
                begin, end = np.searchsorted(bounds, [first, last], side="right").tolist()
                for number in range(begin, end + 1):
                    expected.setdefault(number, set()).add(step)
    uses = {use.number: (use.first, use.last) for use in one.chunks(2, 1, 2, 4)}
    assert uses == {number: (min(steps), max(steps)) for number, steps in expected.items()}
    single = RowReader(store, seq_len=SEQ_LEN, global_batch_size=1, seed=3)
    mixed = MixedReader([single, single], global_batch_size=3, weights=[1, 1])
    whole = {use.number for use in mixed.chunks(0, 0, 3, 60)}
    assert whole == set(range(len(store.chunks)))


def test_a_shown_row_holds_its_text_and_marks_what_is_trained_for(tmp_path: Path) -> None:
    tokenizer = Tokenizer(byte_tokenizer(tmp_path / "tokenizer.json"))
    ids = np.array(tokenizer.encode("the cat and the dog"))
    end = len(tokenizer.encode("the cat"))
    text = shown_row(Row(ids, np.arange(len(ids)) >= end, ""), tokenizer)
    assert text.startswith("\x1b[2m")
    assert click.unstyle(text) == "the cat⟦ and the dog⟧"
