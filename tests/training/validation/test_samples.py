"""Texts that checkpoints write: those of anybody who loads them, once a step, and nothing else changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from launchyard.model.weights.load import load
from launchyard.run import events, layout
from launchyard.run.rows import SampleRow
from launchyard.run.rundir import RunDir
from launchyard.training.spec import DataSpec
from tests.support.small_runs import final_weights, history, make_run, run_workers, write_data
from tests.training.validation.test_tasks import SHORT, with_tokenizer

ASKED = {
    **SHORT,
    "validation.sample": {"prompt": "the cat", "every_steps": 4, "max_new_tokens": 12, "temperature": 1.0},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("nproc", [1, 2])
def test_texts_of_checkpoints(tmp_path: Path, data: DataSpec, nproc: int) -> None:
    run = with_tokenizer(make_run(tmp_path / "run", data, ASKED))
    run_workers(run, nproc)
    rows = [SampleRow.model_validate(row) for row in run.rows(layout.SAMPLES)]
    assert [row.step for row in rows] == [4, 8, 12]
    model = load(run.path(run.checkpoint_dir(12)), device="cpu")
    expected = model.generate("the cat", max_new_tokens=12, temperature=1.0, top_k=50, seed=1)
    assert rows[-1].text == expected
    assert run.read_text(layout.SAMPLE) == f"the cat{expected}\n"
    run_workers(run, nproc)  # nothing is left to do, and nothing is written again
    assert [row["attempt"] for row in run.rows(layout.SAMPLES)] == [0, 0, 0]
    plain = make_run(tmp_path / "plain", data, SHORT)
    run_workers(plain, nproc)
    assert history(plain) == history(run)
    mine, theirs = final_weights(plain), final_weights(run)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_what_fails_is_told_and_costs_no_run(tmp_path: Path, data: DataSpec) -> None:
    run: RunDir = make_run(tmp_path / "run", data, ASKED)  # without a tokenizer
    run_workers(run, 1)
    outcome = run.outcome(0)
    assert outcome is not None and outcome.outcome == "completed"
    failed = [event for event in run.events(0) if event["event"] == events.NOT_SAMPLED]
    assert [event["step"] for event in failed] == [4, 8, 12] and "tokenizer" in failed[0]["message"]
