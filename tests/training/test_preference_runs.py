"""Pairs of answers through workers: the same updates whatever dies and however many ranks there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from launchyard.model.adapter import Adapter
from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.support.small_runs import final_weights, history, make_run, pair, run_workers, write_groups
from tests.training.test_rows_trained import killed_at

SEQ_LEN = 24
EPOCHS = 4
EXACT = ("step", "loss", "reward_chosen", "reward_margin", "reward_accuracy", "grad_norm", "labels", "data_hash")
pytestmark = pytest.mark.slow


def preference_run(folder: Path, data: DataSpec, adapter: Adapter | None, loss: str) -> RunDir:
    keys = {
        "data.kind": "preference", "data.seq_len": SEQ_LEN, "preference.loss": loss, "checkpoint.every_steps": 4,
        "train.max_steps": None, "train.max_epochs": EPOCHS, "train.global_batch_size": 4, "optimizer.lr": 0.01,
        "schedule.name": "constant", "validation.every_steps": 7, "validation.at_start": True,
    }  # fmt: skip
    run = make_run(folder, data, keys)
    if adapter is not None:
        run.write_json("plan.json", {**run.read_json("plan.json"), "adapter": adapter.model_dump(mode="json")})
    return run


@pytest.mark.parametrize(
    ("loss", "adapter"),
    [
        ("dpo", Adapter(kind="lora", r=4, dropout=0.1)),
        ("dpo", Adapter(kind="qlora", r=4)),
        ("simpo", None),
    ],
    ids=["dpo-lora", "dpo-qlora", "simpo-full"],
)
def test_pairs_are_learned_whatever_dies_and_on_any_number_of_ranks(
    tmp_path: Path, loss: str, adapter: Adapter | None
) -> None:
    pairs = map(pair, range(50))
    data = write_groups(str(tmp_path / "data"), pairs, seq_len=SEQ_LEN, epochs=EPOCHS, together=2, validation=0.15)
    whole, killed, resized = (preference_run(tmp_path / name, data, adapter, loss) for name in ("a", "b", "c"))
    run_workers(whole, 1)
    killed_at(killed, 4)
    assert committed_steps(killed)[-1] < len(history(whole)) - 1
    run_workers(killed, 1)
    assert history(killed, EXACT) == history(whole, EXACT)
    mine, theirs = final_weights(killed), final_weights(whole)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    run_workers(resized, 2, {"train.max_steps": 9})
    run_workers(resized, 1)
    exact = ("step", "tokens_seen", "labels", "data_hash")
    assert history(resized, exact) == history(whole, exact)
    close = ("loss", "reward_margin", "grad_norm")
    np.testing.assert_allclose(history(resized, close), history(whole, close), rtol=1e-3, atol=1e-5)
    first, *_, last = whole.rows("validation")
    assert last["loss"] < first["loss"] and last["reward_accuracy"] > 0.8
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6) or loss == "simpo"
    others = {row["step"]: row["loss"] for row in resized.rows("validation")}
    for row in whole.rows("validation"):
        assert others[row["step"]] == pytest.approx(row["loss"], rel=1e-3)
