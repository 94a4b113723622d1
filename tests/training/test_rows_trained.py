"""Rows of instructions through workers: the same rows whatever dies and however many there are."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.training.data.instruct.conversation import Row
from launchyard.training.data.packs import count_packs
from launchyard.training.data.prepare.rows import write_rows
from launchyard.training.data.row_store import read_lengths
from launchyard.training.spec import DataSpec, RowFacts, TokenSource
from tests.support.small_runs import VOCAB, history, make_run, run_workers, start_workers

SEQ_LEN = 16
EPOCHS = 6


def row(number: int) -> Row:
    length = 3 + number * 7 % (SEQ_LEN - 1)
    return Row((np.arange(length) * 3 + number) % VOCAB, np.arange(length) >= length // 2, f"row {number}")


def write_instructions(folder: Path) -> DataSpec:
    splits = write_rows(([row(n)] for n in range(70)), str(folder), chunk_tokens=100, validation=0.1, seed=1)
    sources = {}
    for name, entry in splits.items():
        assert entry.labels and entry.longest
        lengths = read_lengths(str(folder / name)) - 1
        packs = count_packs(lengths, epochs=EPOCHS, capacity=SEQ_LEN, seed=3)
        facts = RowFacts(rows=entry.documents, labels=entry.labels, longest=entry.longest, packs=packs)
        where = str(folder / name)
        sources[name] = TokenSource(folder=where, n_tokens=entry.tokens, digest=entry.digest, instruct=facts)
    return DataSpec(train=(sources["train"],), validation=(sources["validation"],), tokenizer=None, digest="rows")


def killed_at(run: RunDir, step: int) -> None:
    (process,) = start_workers(run, 1)
    try:
        for _ in range(3000):
            if step in committed_steps(run):
                break
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_epochs_of_packs_are_read_whatever_dies_and_on_any_number_of_ranks(tmp_path: Path) -> None:
    data = write_instructions(tmp_path / "data")
    length = {"train.max_steps": None, "train.max_epochs": EPOCHS, "train.global_batch_size": 4}
    keys = {**length, "data.kind": "instruct", "checkpoint.every_steps": 3, "validation.every_steps": 5}
    whole = make_run(tmp_path / "whole", data, keys)
    run_workers(whole, 1)
    other = make_run(tmp_path / "other", data, keys)
    killed_at(other, 3)
    assert committed_steps(other)[-1] < len(history(whole)) - 1
    run_workers(other, 2)
    facts = data.train[0].instruct
    assert facts is not None
    assert len(history(whole)) == -(-sum(facts.packs) // 4)
    exact = ("step", "tokens_seen", "labels", "data_hash")
    assert history(other, exact) == history(whole, exact)
    np.testing.assert_allclose(history(other, ("loss",)), history(whole, ("loss",)), rtol=1e-4)
    inputs = data.train[0].n_tokens - facts.rows
    assert history(whole, ("tokens_seen",))[-1][0] == EPOCHS * inputs, "with a label or without, but no padding"
    assert sum(labels for (labels,) in history(whole, ("labels",))) == EPOCHS * facts.labels
    assert [r["loss"] for r in whole.rows("validation")] == pytest.approx([r["loss"] for r in other.rows("validation")])
