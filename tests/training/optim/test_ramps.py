"""Ramps are pure: what has been read before a step is a sum, the tokens follow each other, whoever reads them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launchyard.run.checkpoints import committed_steps
from launchyard.run.rundir import RunDir
from launchyard.training.batching import count_steps, cut_batch, ramp_unit, sequences_before, sequences_in
from launchyard.training.data.mixed_reader import RampedReader
from launchyard.training.data.reader import Batch, Reader, TokenReader
from launchyard.training.data.row_reader import RowReader
from launchyard.training.data.row_store import RowStore
from launchyard.training.data.token_store import TokenStore
from launchyard.training.recipe import Recipe
from launchyard.training.sections.data import DataConfig
from launchyard.training.sections.ramp import ramped, ramped_sum, steps_to_sum
from launchyard.training.sections.train import TrainConfig
from launchyard.training.spec import DataSpec
from tests.support.small_runs import (
    RECIPE,
    final_weights,
    history,
    make_run,
    row,
    run_workers,
    start_workers,
    write_data,
    write_groups,
)

RAMP = ((0, 4), (3, 8), (7, 12))
TRAIN = TrainConfig(max_steps=20, global_batch_size=12, batch_size_ramp=RAMP)


@st.composite
def ramps(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    count = draw(st.integers(1, 4))
    steps = [0, *sorted(draw(st.sets(st.integers(1, 30), min_size=count - 1, max_size=count - 1)))]
    values = sorted(draw(st.sets(st.integers(1, 40), min_size=count, max_size=count)))
    return tuple(zip(steps, values, strict=True))


@given(ramp=ramps(), step=st.integers(0, 60), total=st.integers(1, 900))
def test_sums_are_those_of_the_values(ramp: tuple[tuple[int, int], ...], step: int, total: int) -> None:
    last = ramp[-1][1]
    assert ramped_sum(ramp, step, last) == sum(ramped(ramp, before, last) for before in range(step))
    steps = steps_to_sum(ramp, total, last)
    assert ramped_sum(ramp, steps - 1, last) < total <= ramped_sum(ramp, steps, last)


def test_without_a_ramp_nothing_changes() -> None:
    plain = TrainConfig(max_steps=20, global_batch_size=12)
    assert [sequences_in(plain, step) for step in (0, 9)] == [12, 12]
    assert sequences_before(plain, 9) == 108
    assert ramp_unit(plain) == 12


@pytest.mark.parametrize(
    ("ramp", "text"),
    [
        ([[1, 4], [3, 12]], "must grow from 0 on"),
        ([[0, 4], [3, 8], [3, 12]], "must grow from 0 on"),
        ([[0, 4], [3, 4], [5, 12]], "its values are"),
        ([[0, 4], [3, 8]], "ends with 8, but global_batch_size is 12"),
    ],
)
def test_what_is_no_ramp_is_refused(ramp: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TrainConfig.model_validate({"max_steps": 1, "global_batch_size": 12, "batch_size_ramp": ramp})


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="8 sequences, from step 3, cannot be cut evenly over 3 workers"):
        cut_batch(TRAIN.model_copy(update={"batch_size_ramp": ((0, 6), (3, 8), (7, 12))}), 3)
    assert cut_batch(TRAIN, 4).micro_batch_size == 3
    with pytest.raises(ValueError, match="12 does not divide seq_len, 32"):
        DataConfig.model_validate({"source": "x", "seq_len": 32, "seq_len_ramp": [[0, 12], [5, 32]]})
    with pytest.raises(ValueError, match="rows are not cut"):
        DataConfig.model_validate({"source": "x", "kind": "instruct", "seq_len": 32, "seq_len_ramp": [[0, 8], [5, 32]]})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    return write_data(tmp_path_factory.mktemp("data"))


def tokens_of(data: DataSpec) -> TokenReader:
    return TokenReader([TokenStore(data.train[0].folder)], seq_len=16, global_batch_size=ramp_unit(TRAIN), seed=3)


def rows_of(folder: Path) -> RowReader:
    spec = write_groups(str(folder), [row(number) for number in range(90)], seq_len=20, epochs=1)
    return RowReader(RowStore(spec.train[0].folder), seq_len=20, global_batch_size=ramp_unit(TRAIN), seed=3)


@pytest.mark.parametrize("kind", ["tokens", "rows"])
def test_a_step_is_the_same_for_any_number_of_workers(data: DataSpec, tmp_path: Path, kind: str) -> None:
    """And all steps together read what the reader of small batches reads, in its order, without gap or repetition."""
    reader: Reader = tokens_of(data) if kind == "tokens" else rows_of(tmp_path)
    ramp = RampedReader(reader, TRAIN)
    hashes = 0
    for step in range(10):
        whole = ramp.batch(step)
        assert len(whole.inputs) == sequences_in(TRAIN, step)
        hashes += whole.data_hash
        for workers in (2, 4):
            share = 12 // workers
            parts = [ramp.batch(step, rank * share, share) for rank in range(workers)]
            assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs)
            assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
            assert sum(part.data_hash for part in parts) % 2**64 == whole.data_hash % 2**64
            if whole.documents is not None:
                assert sum((part.documents or () for part in parts), ()) == whole.documents
        sources, samples = ramp.plan(step, 0, 12, 1)
        assert sources.shape == samples.shape == (1, len(whole.inputs))
    small = [reader.batch(number).data_hash for number in range(sequences_before(TRAIN, 10) // 4)]
    assert hashes % 2**64 == sum(small) % 2**64
    with pytest.raises(IndexError):
        ramp.batch(0, 0, 1)  # a third of a sequence


def test_lengths_in_tokens_and_epochs_count_the_ramp(data: DataSpec) -> None:
    def steps(**train: Any) -> int:
        given = {"global_batch_size": 12, "batch_size_ramp": RAMP, "device": "cpu", **train}
        return count_steps(Recipe.model_validate({**RECIPE, "train": given}), data)

    assert steps(max_tokens=16 * (3 * 4 + 4 * 8)) == 7
    assert steps(max_tokens=16 * (3 * 4 + 4 * 8) + 1) == 8
    one_epoch = steps(max_epochs=1)
    train = TRAIN
    samples = -(-(data.n_tokens - 1) // 16)
    assert sequences_before(train, one_epoch - 1) < samples <= sequences_before(train, one_epoch)


def test_shorter_sequences_have_the_same_tokens_and_labels(data: DataSpec) -> None:
    whole = tokens_of(data).batch(5)
    cut: Batch = whole.cut_into(4)
    assert cut.inputs.shape == (16, 4)
    assert torch.equal(cut.inputs.flatten(), whole.inputs.flatten())
    assert torch.equal(cut.labels.flatten(), whole.labels.flatten())
    assert (cut.n_valid, cut.n_tokens, cut.data_hash) == (whole.n_valid, whole.n_tokens, whole.data_hash)


# -- runs ------------------------------------------------------------------------------------------------------------
RAMPED = {
    "train.max_steps": 40,
    "train.batch_size_ramp": [[0, 4], [9, 8], [21, 12]],
    "data.seq_len_ramp": [[0, 4], [5, 8], [14, 16]],
    "schedule.by": "tokens",
    "schedule.name": "constant",
    "checkpoint.every_steps": 3,
}


def run_of(folder: Path, data: DataSpec, nproc: int, overrides: dict[str, Any]) -> RunDir:
    run = make_run(folder, data, overrides)
    run_workers(run, nproc)
    return run


def assert_nearly(one: RunDir, other: RunDir) -> None:
    """The same tokens in every step, and the same loss but for rounding."""
    mine, theirs = history(one), history(other)
    assert [row[3:] for row in mine] == [row[3:] for row in theirs]
    for first, second in zip(mine, theirs, strict=True):
        assert first[1:3] == pytest.approx(second[1:3], rel=1e-4)


def test_a_killed_run_with_ramps_is_the_run_that_was_not(tmp_path: Path, data: DataSpec) -> None:
    expected = run_of(tmp_path / "undisturbed", data, 2, RAMPED)
    counted = [16 * sequences_before(ramped_recipe(), number) for number in range(1, 21)]
    assert [row[4] for row in history(expected)][:20] == counted  # until the data's last sample, which is short
    run = make_run(tmp_path / "killed", data, RAMPED)
    processes = start_workers(run, 2)
    deadline = time.monotonic() + 60
    while not committed_steps(run) and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run_workers(run, 2)
    assert next(e["step"] for e in run.events(1) if e["event"] == "started") > 0
    assert history(run) == history(expected)
    mine, theirs = final_weights(run), final_weights(expected)
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


def ramped_recipe() -> TrainConfig:
    given = {"max_steps": 40, "global_batch_size": 12, "batch_size_ramp": RAMPED["train.batch_size_ramp"]}
    return TrainConfig.model_validate(given)


@pytest.mark.slow
def test_accumulated_shared_and_resized_it_is_one_run(tmp_path: Path, data: DataSpec) -> None:
    one = run_of(tmp_path / "one", data, 1, RAMPED)
    assert_nearly(run_of(tmp_path / "accumulated", data, 1, {**RAMPED, "train.micro_batch_size": 2}), one)
    assert_nearly(run_of(tmp_path / "four", data, 4, RAMPED), one)
    resized = make_run(tmp_path / "resized", data, RAMPED)
    for nproc, last in ((2, 7), (1, 19), (4, 40)):
        run_workers(resized, nproc, {"train.max_steps": last} if last < 40 else {})
    assert_nearly(resized, one)


@pytest.mark.slow
def test_experts_balanced_over_ramped_batches_are_those_of_one_worker(tmp_path: Path, data: DataSpec) -> None:
    experts = {"n_experts": 4, "top_k": 2, "ffn_dim": 24}
    model = {
        "family": "llama",
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "ffn_dim": 48,
        "vocab_size": 97,
        "max_seq_len": 64,
    }
    overrides = {**RAMPED, "model": {**model, "moe": experts}, "train.load_balancing_loss": 0.1, "train.max_steps": 24}
    one = run_of(tmp_path / "one", data, 1, overrides)
    assert_nearly(run_of(tmp_path / "two", data, 2, {**overrides, "train.micro_batch_size": 1}), one)


@pytest.mark.slow
def test_rows_are_ramped_too(tmp_path: Path) -> None:
    spec = write_groups(str(tmp_path / "rows"), [row(number) for number in range(300)], seq_len=16, epochs=4)
    overrides = {key: value for key, value in RAMPED.items() if key != "data.seq_len_ramp"}
    overrides |= {"data.kind": "instruct", "train.max_steps": 24}
    one = run_of(tmp_path / "one", spec, 1, overrides)
    assert_nearly(run_of(tmp_path / "two", spec, 2, overrides), one)
