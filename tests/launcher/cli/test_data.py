from __future__ import annotations

import io
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.cli.data import prepare
from launchyard.launcher.cli.weights.inspect import inspect
from launchyard.launcher.data.progress import preparing_line
from launchyard.training.data.prepare.journal import PrepareProgress
from tests.support.litdata_reader import write_chunks


def call(command: click.Command, *arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, (LaunchError, SystemExit)):
        raise result.exception
    return result


@pytest.fixture
def folder(tmp_path: Path, novel: str, tokenizer_file: str) -> Path:
    (tmp_path / "a.txt").write_text(novel[:40_000])
    done = call(
        prepare, tmp_path / "a.txt", "--tokenizer", tokenizer_file, "--out", tmp_path / "o", "--validation", "0.1",
        "--chunk-tokens", 5000,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert f"next: launch RECIPE data.source={tmp_path}/o" in done.output
    return tmp_path / "o"


def test_inspect_tells_and_verifies(folder: Path, novel: str) -> None:
    told = call(inspect, folder, "--verify", "--sample", 30).output
    assert "uint16, vocabulary 2,048, documents end with <|endoftext|>" in told
    assert "all chunks are intact" in told
    assert "--- train\n" in told
    assert any(told.split("--- train\n")[1][:40] == novel[at : at + 40] for at in (0, *range(len(novel[:40_000]))))
    facts = json.loads(call(inspect, folder, "--json", "--verify").output)
    assert facts["faults"] == []
    assert facts["tokens"] == sum(split["tokens"] for split in facts["splits"].values())


def test_verify_names_all_that_is_wrong(folder: Path) -> None:
    chunk = folder / "train" / "chunk-0-1.bin"
    raw = bytearray(chunk.read_bytes())
    raw[-1] ^= 1
    chunk.write_bytes(raw)
    (folder / "validation" / "chunk-0-0.bin").unlink()
    done = call(inspect, folder, "--verify")
    assert isinstance(done.exception, LaunchError)
    assert done.exception.exit_code == 1
    assert f"wrong: {chunk} is changed" in done.output
    assert f"wrong: {folder}/validation/chunk-0-0.bin is missing" in done.output
    (folder / "train" / "digests.json").unlink()
    assert f"wrong: {folder}/train/digests.json is missing" in call(inspect, folder, "--verify").output
    (folder / "train" / "index.json").unlink()
    assert "index.json" in call(inspect, folder, "--verify").output


def test_exchanged_digests_are_noticed(folder: Path) -> None:
    """Chunks and digests of another data set, whole in themselves, are not those of this one."""
    for name in ("index.json", "digests.json", "chunk-0-0.bin"):
        (folder / "train" / name).write_bytes((folder / "validation" / name).read_bytes())
    assert "is not the one that dataset.json was written with" in call(inspect, folder, "--verify").output


def test_inspect_a_bare_folder(tmp_path: Path) -> None:
    write_chunks(tmp_path / "x", [1, 2, 3], chunk=2)
    told = call(inspect, tmp_path / "x").output
    assert "3 tokens in 2 chunks, uint16; litdata, vocabulary unknown" in told
    assert "a changed byte in its chunks cannot be noticed" in told
    done = call(inspect, tmp_path / "x", "--sample", 3)
    assert isinstance(done.exception, UserError)
    assert "cannot be shown as text" in str(done.exception)


@pytest.mark.parametrize("command", ["prepare", "inspect"])
def test_mistakes_exit_2(tmp_path: Path, tokenizer_file: str, command: str) -> None:
    if command == "prepare":
        done = call(prepare, tmp_path / "no.txt", "--tokenizer", tokenizer_file, "--out", tmp_path / "o")
    else:
        done = call(inspect, tmp_path / "no.txt")
    assert isinstance(done.exception, UserError)
    assert "no.txt does not exist" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_prepare_as_json(tmp_path: Path, tokenizer_file: str) -> None:
    (tmp_path / "a.txt").write_text("some text")
    done = call(prepare, tmp_path / "a.txt", "--tokenizer", tokenizer_file, "--out", tmp_path / "o", "--json")
    assert json.loads(done.stdout)["splits"]["train"]["documents"] == 1


def test_progress_on_a_terminal_and_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    half, whole = PrepareProgress(50, 100, 3, 1000, 2.0), PrepareProgress(100, 100, 6, 2000, 4.0)
    live, plain = Terminal(), io.StringIO()
    for stream in (live, plain):
        report = preparing_line(stream, every=0.0)
        report(PrepareProgress(0, 100, 0, 0, 0.0, note="said"))
        report(half)
        report(whole)
    assert plain.getvalue().splitlines() == [
        "said",
        "prepare  50.0%  3 documents  1,000 tokens  500/s  ETA 0:00:02",
        "prepare 100.0%  6 documents  2,000 tokens  500/s  ETA 0:00:00",
    ]
    assert live.getvalue().startswith("said\n")
    assert live.getvalue().endswith("ETA 0:00:00\x1b[K\n")


# -- a check ---------------------------------------------------------------------------------------------------------
def test_a_check_writes_nothing_but_its_page(tmp_path: Path, tokenizer_file: str) -> None:
    """The same findings in a terminal, as JSON and on a page that needs no network."""
    text = tmp_path / "a.jsonl"
    text.write_text('{"text": "one & <b>two</b>"}\n{"text": "one & <b>two</b>"}\n{no\n')
    asked = [text, "--check", "--no-near", "--tokenizer", tokenizer_file, "--seq-len", 3]
    lines = call(prepare, *asked, "--report", tmp_path / "page.html").output
    found = json.loads(call(prepare, *asked, "--json").stdout)
    assert (found["duplicates_exact"], found["rejects"]["count"], found["lengths"][0]["longer"]) == (1, 1, 2)
    assert f"{text}:2 = {text}:1 (100%)" in lines
    page = (tmp_path / "page.html").read_text()
    assert f"{text}:2 = {text}:1 (100%)" in page and "http" not in page and "<script" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "page.html"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--check", "--out", "x"], "--out: not with --check"),
        (["--check", "--kind", "instruct", "--too-long", "drop"], "--too-long: not with --check"),
        (["--check", "--kind", "instruct", "--validation", "0.1"], "no tokenizer is named"),
        (["--check", "--seq-len", "5"], "no tokenizer is named"),
        (["--no-near", "--out", "x", "--tokenizer", "t"], "--no-near: only with --check"),
        (["--out", "x"], "Missing option '--tokenizer'"),
    ],
)
def test_options_of_a_check(tmp_path: Path, args: list[str], said: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    done = call(prepare, tmp_path / "a.txt", *args)
    assert said in f"{done.output} {done.exception}"
