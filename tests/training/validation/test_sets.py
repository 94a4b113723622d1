"""Several sets of held-out data: each measured whole, once at each validation whatever dies, and all else as it was."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy

from launchyard.launcher.report.ending import last_page
from launchyard.launcher.report.metric_tables import validation_table
from launchyard.launcher.runs.pinned import pinned_step
from launchyard.launcher.runs.state import state_of
from launchyard.launcher.watch.live import Watched
from launchyard.model.weights.load import load
from launchyard.run import events
from launchyard.run.rows import ValidationRow
from launchyard.run.rundir import RunDir
from launchyard.training.data.row_store import RowStore
from launchyard.training.spec import DataSpec, TokenSource
from launchyard.training.telemetry.trackers.base import of_validation
from tests.support.small_runs import (
    VOCAB,
    final_weights,
    history,
    make_run,
    pair,
    row,
    run_workers,
    start_workers,
    write_chunks,
    write_data,
    write_groups,
)

SEQ_LEN = 16
SETS = {
    "train.max_steps": 12,
    "checkpoint.every_steps": 4,
    "validation.sets": {"web": "x", "code": "y"},
    "validation.every_steps": 4,
    "validation.at_start": True,
}
FIGURES = ("step", "set", "loss", "perplexity", "bits_per_byte")


def tokens_of(n: int, seed: int) -> np.ndarray[Any, Any]:
    return (np.cumsum(np.random.default_rng(seed).integers(0, 4, n)) % VOCAB).astype(np.uint16)


HELD_OUT = {"web": [tokens_of(401, 1), tokens_of(57, 2)], "code": [tokens_of(250, 3)]}


def with_held_out(data: DataSpec, folder: Path, sets: dict[str, list[Any]]) -> DataSpec:
    held: dict[str, tuple[TokenSource, ...]] = {}
    for name, parts in sets.items():
        folders = [folder / f"{name}-{number}" for number in range(len(parts))]
        for one, tokens in zip(folders, parts, strict=True):
            write_chunks(one, [tokens])
        pairs = zip(folders, parts, strict=True)
        held[name] = tuple(TokenSource(folder=str(one), n_tokens=len(tokens)) for one, tokens in pairs)
    return data.model_copy(update={"sets": held, "tokenizer": "tokenizer/tokenizer.json"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    folder = tmp_path_factory.mktemp("data")
    return with_held_out(write_data(folder), folder, HELD_OUT)


def token(number: int) -> str:
    """0 is a control token, 1 a character of two bytes, the others have two to five letters."""
    return ("<end>", "é")[number] if number < 2 else f"{'x' * (number % 4)}{number:02d}"


def tokenizer_json() -> str:
    letters = {"é": "Ã©"}
    made = Tokenizer(models.BPE(vocab={letters.get(one, one): n for n, one in enumerate(map(token, range(VOCAB)))},
                                merges=[]))  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<end>"])
    return str(made.to_str())


LENGTHS = torch.tensor([0, *(len(token(number).encode()) for number in range(1, VOCAB))])


def run_at(folder: Path, data: DataSpec, overrides: dict[str, Any]) -> RunDir:
    run = make_run(folder, data, overrides)
    run.write_text("tokenizer/tokenizer.json", tokenizer_json())
    return run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: DataSpec) -> RunDir:
    overrides = {**SETS, "checkpoint.keep_best": 1, "checkpoint.best_metric": "web.loss"}
    run = run_at(tmp_path_factory.mktemp("runs") / "undisturbed", data, overrides)
    run_workers(run, 1)
    return run


def measured(run: RunDir) -> list[tuple[Any, ...]]:
    return [tuple(row.get(key) for key in FIGURES) for row in run.rows("validation")]


def by_hand(run: RunDir, step: int, parts: list[Any], *, samples: int | None = None) -> tuple[float, float, float]:
    """Loss, perplexity and bits per byte of the checkpoint, over the first so many samples."""
    model = load(run.path(run.checkpoint_dir(step)), device="cpu").transformer.eval()
    nats, count, n_bytes = 0.0, 0, 0
    cut = [part[start : start + SEQ_LEN + 1] for part in parts for start in range(0, len(part) - 1, SEQ_LEN)]
    for tokens in cut[:samples]:
        ids = torch.from_numpy(tokens.astype(np.int64))
        with torch.no_grad():
            logits = model(ids[None, :-1])[0]
        nats += cross_entropy(logits.double(), ids[1:], reduction="sum").item()
        count += len(ids) - 1
        n_bytes += int(LENGTHS[ids[1:]].sum())
    return nats / count, math.exp(nats / count), nats / math.log(2) / n_bytes


def test_figures_are_those_of_torch_on_the_same_tokens(undisturbed: RunDir, data: DataSpec) -> None:
    steps = [0, 4, 8, 12]
    rows = list(undisturbed.rows("validation"))
    assert [(row["step"], row.get("set")) for row in rows] == [(s, n) for s in steps for n in (None, "code", "web")]
    assert all("set" not in row for row in rows[::3]), "the main set is as it was before there were others"
    assert all(ValidationRow.model_validate(row) for row in rows)
    whole = (np.cumsum(np.random.default_rng(0).integers(0, 3, 2501)) % VOCAB).astype(np.uint16)
    parts = {None: [np.resize(whole, 333)], **HELD_OUT}
    for one in rows[3:]:
        expected = by_hand(undisturbed, one["step"], parts[one.get("set")])
        assert tuple(one[key] for key in FIGURES[2:]) == pytest.approx(expected, rel=1e-5), one


def test_some_batches_of_each(tmp_path: Path, data: DataSpec) -> None:
    run = run_at(tmp_path / "run", data, {**SETS, "train.max_steps": 4, "validation.max_batches": 1})
    run_workers(run, 1)
    row = list(run.rows("validation"))[-1]
    expected = by_hand(run, 4, HELD_OUT["web"], samples=12)
    assert tuple(row[key] for key in FIGURES[2:]) == pytest.approx(expected, rel=1e-5)


SHARDED = {"parallel.dp_shard": 2, "train.micro_batch_size": 2}


@pytest.mark.parametrize("overrides", [{}, pytest.param(SHARDED, marks=pytest.mark.slow)], ids=["whole", "sharded"])
def test_on_two_ranks_they_are_the_same(
    tmp_path: Path, undisturbed: RunDir, data: DataSpec, overrides: dict[str, Any]
) -> None:
    run = run_at(tmp_path / "run", data, {**SETS, **overrides})
    run_workers(run, 2)
    mine, theirs = measured(run), measured(undisturbed)
    assert [row[:2] for row in mine] == [row[:2] for row in theirs]
    np.testing.assert_allclose([row[2:] for row in mine], [row[2:] for row in theirs], rtol=1e-5)


def killed_after(run: RunDir, steps: int) -> None:
    (process,) = start_workers(run, 1)
    deadline = time.monotonic() + 60
    while len(history(run)) < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()


def test_killed_and_resumed_each_set_has_each_step_once(tmp_path: Path, undisturbed: RunDir, data: DataSpec) -> None:
    run = run_at(tmp_path / "killed", data, SETS)
    for steps in (6, 10):
        killed_after(run, steps)
    run_workers(run, 1)
    assert len(run.attempts()) == 3
    assert measured(run) == measured(undisturbed)
    assert history(run) == history(undisturbed)
    mine, theirs = final_weights(run), final_weights(undisturbed)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    for attempt in (1, 2):
        first = next(event["step"] for event in run.events(attempt) if event["event"] == events.STARTED)
        assert first in (0, 4, 8)
        again = [row["step"] for row in run.attempt_rows("validation", attempt)]
        assert first not in again or first == 0, "it was measured before it was saved"


def test_a_stop_in_the_second_set(tmp_path: Path) -> None:
    """It is taken at once; nothing of that validation is told, and all of it is measured after the resume."""
    folder = tmp_path / "data"
    data = with_held_out(write_data(folder), folder, {"code": [tokens_of(16_000, 3)]})
    keys = {**SETS, "validation.sets": {"code": "y"}, "validation.at_start": False, "train.max_steps": 6}
    whole, run = (run_at(tmp_path / name, data, keys) for name in ("whole", "stopped"))
    processes = start_workers(run, 2)
    deadline = time.monotonic() + 60
    while not any(e["event"] == events.VALIDATING for e in run.events(0)) and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)  # the first set is small
    os.kill(processes[1].pid, signal.SIGUSR1)
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    outcome = run.outcome(0)
    assert outcome is not None and (outcome.outcome, outcome.step) == ("stopped", 4)
    assert not list(run.rows("validation")) and not any(e["event"] == events.VALIDATED for e in run.events(0))
    run_workers(run, 2)
    run_workers(whole, 2)
    assert [row[:2] for row in measured(run)] == [(step, name) for step in (4, 6) for name in (None, "code")]
    assert measured(run) == measured(whole)


def test_without_them_all_else_is_as_with_them(tmp_path: Path, undisturbed: RunDir, data: DataSpec) -> None:
    without = {key: value for key, value in SETS.items() if key != "validation.sets"}
    plain = run_at(tmp_path / "plain", data.model_copy(update={"sets": {}}), without)
    run_workers(plain, 1)
    assert history(plain) == history(undisturbed)
    assert measured(plain) == [row for row in measured(undisturbed) if row[1] is None]
    mine, theirs = final_weights(plain), final_weights(undisturbed)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_sets_alone_without_a_tokenizer(tmp_path: Path, data: DataSpec) -> None:
    """Nothing else is held out: the figure that ends the run early is that of a set."""
    alone = data.model_copy(update={"validation": (), "tokenizer": None})
    early = {"metric": "code.loss", "patience": 1, "mode": "max"}
    run = run_at(tmp_path / "run", alone, {**SETS, "early_stopping": early})
    run_workers(run, 1)
    assert [row[:2] for row in measured(run)] == [(step, name) for step in (0, 4) for name in ("code", "web")]
    assert all(row[3] == pytest.approx(math.exp(row[2])) and row[4] is None for row in measured(run))
    outcome = run.outcome(0)
    assert outcome is not None and "validation code.loss has not improved" in outcome.message
    assert any("web" in line for line in last_page(run, outcome))


def test_of_conversations_the_answers_count(tmp_path: Path) -> None:
    """Their labels alone: in the loss, and in the bytes."""
    main, more = (
        write_groups(str(tmp_path / name), map(row, numbers), seq_len=SEQ_LEN, epochs=1)
        for name, numbers in (("main", range(60)), ("more", range(60, 90)))
    )
    data = main.model_copy(update={"sets": {"more": more.train}, "tokenizer": "tokenizer/tokenizer.json"})
    keys = {
        "data.kind": "instruct",
        "train.max_steps": 4,
        "checkpoint.every_steps": 4,
        "validation.sets": {"more": "x"},
    }
    run = run_at(tmp_path / "run", data, keys)
    run_workers(run, 1)
    (found,) = (one for one in run.rows("validation") if one.get("set"))
    model = load(run.path(run.checkpoint_dir(4)), device="cpu").transformer.eval()
    store = RowStore(more.train[0].folder)
    nats, count, n_bytes = 0.0, 0, 0
    for one in map(store.row, range(len(store.lengths))):
        ids = torch.from_numpy(one.ids)
        wanted = torch.from_numpy(one.trained[1:])
        with torch.no_grad():
            logits = model(ids[None, :-1])[0][wanted]
        nats += cross_entropy(logits.double(), ids[1:][wanted], reduction="sum").item()
        count += int(wanted.sum())
        n_bytes += int(LENGTHS[ids[1:][wanted]].sum())
    expected = (nats / count, math.exp(nats / count), nats / math.log(2) / n_bytes)
    assert tuple(found[key] for key in FIGURES[2:]) == pytest.approx(expected, rel=1e-5)


def test_of_pairs_there_are_rewards_and_no_perplexity(tmp_path: Path) -> None:
    main, more = (
        write_groups(str(tmp_path / name), map(pair, numbers), seq_len=24, epochs=1, together=2, validation=0.2)
        for name, numbers in (("main", range(30)), ("more", range(30, 50)))
    )
    data = main.model_copy(update={"sets": {"more": more.train}, "tokenizer": "tokenizer/tokenizer.json"})
    keys = {"data.kind": "preference", "data.seq_len": 24, "preference.loss": "simpo", "train.max_steps": 4,
            "validation.sets": {"more": "x"}, "validation.every_steps": 2, "checkpoint.keep_best": 1,
            "checkpoint.best_metric": "more.reward_accuracy"}  # fmt: skip
    run = run_at(tmp_path / "run", data, keys)
    run_workers(run, 1)
    rows = list(run.rows("validation"))
    assert [(one["step"], one.get("set")) for one in rows] == [(2, None), (2, "more"), (4, None), (4, "more")]
    assert all("reward_margin" in one and not {"perplexity", "bits_per_byte"} & set(one) for one in rows)
    best = max(rows[1::2], key=lambda one: (one["reward_accuracy"], -one["step"]))
    assert pinned_step(run, "best") == best["step"]


def test_who_reads_the_rows(undisturbed: RunDir) -> None:
    rows = list(undisturbed.rows("validation"))
    of_web = {row["step"]: row["loss"] for row in rows if row.get("set") == "web" and row["step"]}
    assert pinned_step(undisturbed, "best") == min(of_web, key=of_web.__getitem__)
    header, *lines = [line.split() for line in validation_table(rows) if line]
    assert header == ["step", "set", "loss", "perplexity", "bits_per_byte", "attempt"]
    assert [line[:2] for line in lines[-3:]] == [["12", "main"], ["12", "code"], ["12", "web"]]
    assert list(of_validation(rows[0])) == ["validation/loss", "validation/perplexity", "validation/bits_per_byte"]
    assert next(iter(of_validation(rows[-1]))) == "validation/web/loss"
    last = {row.get("set") or "main": row["loss"] for row in rows[-3:]}
    assert state_of(undisturbed).validation_losses == pytest.approx(last)
    facts = Watched(undisturbed).refresh()
    assert facts.validation == (12, last["main"])
    assert {name: loss for name, (_, loss) in facts.validation_sets.items()} == {n: last[n] for n in ("web", "code")}
