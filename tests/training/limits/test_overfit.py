"""The first batches again and again: the same tokens in each turn, over any number of workers and after a kill."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.mixed_reader import LoopedReader
from launchyard.training.data.open_reader import open_reader
from launchyard.training.data.reader import Prefetcher, TokenReader
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.spec import DataSpec
from tests.support.cached import SIZE, opened, remote, stream
from tests.support.small_runs import (
    RECIPE,
    final_weights,
    history,
    make_run,
    pair,
    row,
    run_workers,
    start_workers,
    write_data,
    write_groups,
)

__all__ = ["remote", "stream"]

RAMPED = {"train.batch_size_ramp": [[0, 4], [2, 12]]}
KINDS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "ramp": RAMPED,
    "mixture": {"data.mixture_schedule": [{"from_step": 2, "weights": [0.2, 0.8]}]},
    "rows": {"data.kind": "instruct"},
    "pairs": {"data.kind": "preference", "preference": {"loss": "simpo"}},
}


def data_of(kind: str, folder: Path) -> DataSpec:
    if kind == "rows":
        return write_groups(str(folder), [row(number) for number in range(90)], seq_len=20, epochs=1)
    if kind == "pairs":
        return write_groups(str(folder), [pair(number) for number in range(60)], seq_len=24, epochs=1, together=2)
    one = write_data(folder / "one")
    if kind != "mixture":
        return one
    (small,) = write_data(folder / "small", n_tokens=421, n_validation_tokens=90, seed=5).train
    (large,) = one.train
    mixed = (large.model_copy(update={"weight": 0.7}), small.model_copy(update={"weight": 0.3}))
    return one.model_copy(update={"train": mixed})


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_reads_what_the_first_one_read(kind: str, tmp_path: Path) -> None:
    data = data_of(kind, tmp_path)
    overrides = {"data.seq_len": 24 if kind in ("rows", "pairs") else 16, **KINDS[kind]}
    if kind == "mixture":
        overrides |= {"data.mixture": [{"source": "x", "weight": 0.7}, {"source": "y", "weight": 0.3}]}

    def reader(**train: int) -> Any:
        given = apply_overrides(RECIPE, {**overrides, **{f"train.{key}": value for key, value in train.items()}})
        recipe = Recipe.model_validate(given)
        cache = ChunkCache(str(tmp_path / "cache"))
        return open_reader(data.train, recipe=recipe, global_batch_size=12, cache=cache, training=True)

    plain, looped = reader(), reader(overfit_batches=3)
    assert isinstance(looped, LoopedReader) and not isinstance(plain, LoopedReader)
    hashes = [plain.batch(step).data_hash for step in range(3)]
    assert len(set(hashes)) == 3
    for step in range(8):
        batch = looped.batch(step)
        assert batch.data_hash == hashes[step % 3]
        assert torch.equal(batch.labels, plain.batch(step % 3).labels)
        assert [part.tolist() for part in looped.plan(step, 0, 12, 1)] == [
            part.tolist() for part in plain.plan(step % 3, 0, 12, 1)
        ]
    first, once = plain.tokens_read(1), plain.tokens_read(3)
    assert looped.tokens_read(7) == [2 * whole + part for whole, part in zip(once, first, strict=True)]


def test_a_killed_run_of_two_workers_is_the_one_of_one(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    overrides = {"train.overfit_batches": 2, "train.max_steps": 30}
    alone = make_run(tmp_path / "alone", data, overrides)
    run_workers(alone, 1)
    rows = history(alone)
    assert len({row[-1] for row in rows}) == 2 and rows[0][-1] != rows[1][-1]
    assert rows[-1][1] < 0.8 * rows[0][1]

    undisturbed = make_run(tmp_path / "undisturbed", data, overrides)
    run_workers(undisturbed, 2)
    killed = make_run(tmp_path / "killed", data, overrides)
    workers = start_workers(killed, 2)
    while sum(1 for _ in killed.rows("steps")) < 9:
        time.sleep(0.02)
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    run_workers(killed, 2)
    assert history(killed) == history(undisturbed)
    assert all(torch.equal(one, final_weights(undisturbed)[key]) for key, one in final_weights(killed).items())
    assert [row[-1] for row in history(undisturbed)] == [row[-1] for row in rows]


def test_a_cache_that_holds_less_than_a_turn_still_gives_it(tmp_path: Path, remote: str) -> None:
    def hashes(quota: int) -> list[int]:
        store = opened(remote, tmp_path / str(quota), quota=quota, warn=lambda _: None)
        inner = TokenReader([store], seq_len=256, global_batch_size=12, seed=4)
        with Prefetcher(LoopedReader(inner, 5), start_step=2, stop_step=16, first_slot=0, n=12) as feed:
            return [batch.data_hash for _, batch in feed]

    whole = hashes(100 * SIZE)
    assert hashes(SIZE) == hashes(2 * SIZE) == whole
    assert whole[5:] == whole[:-5] and len(set(whole)) == 5
