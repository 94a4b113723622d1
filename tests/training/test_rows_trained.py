"""Rows of instructions through workers: the same rows whatever dies and however many there are."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from launchyard.model.adapter import Adapter
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from tests.support.small_runs import final_weights, history, make_run, row, run_workers, start_workers, write_groups

SEQ_LEN = 16
EPOCHS = 6


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
    data = write_groups(str(tmp_path / "data"), map(row, range(70)), seq_len=SEQ_LEN, epochs=EPOCHS)
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


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, Adapter(kind="lora", r=4, dropout=0.1)], ids=["full", "lora"])
def test_compiled_blocks_train_on_rows_as_others_do(tmp_path: Path, adapter: Adapter | None) -> None:
    data = write_groups(str(tmp_path / "data"), map(row, range(60)), seq_len=SEQ_LEN, epochs=1)
    keys = {"data.kind": "instruct", "train.max_steps": 6, "train.global_batch_size": 4, "schedule.warmup_steps": 0}
    losses, names = [], []
    for compiled in (False, True):
        run = make_run(tmp_path / str(compiled), data, {**keys, "parallel.compile": compiled})
        if adapter is not None:
            run.write_json("plan.json", {**run.read_json("plan.json"), "adapter": adapter.model_dump(mode="json")})
        run_workers(run, 1)
        losses.append(history(run, ("loss", "grad_norm")))
        names.append(final_weights(run).keys())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert names[0] == names[1], "what is compiled is saved under its own names"
