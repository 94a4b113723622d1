"""A check of conversations tells what `launch prepare` then does with them, and names every fault by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.training.data.check.conversations import RowCheck, check_conversations
from launchyard.training.data.check.findings import CorpusFindings
from launchyard.training.data.index import RowOptions
from launchyard.training.data.instruct.render import TOO_LONG
from launchyard.training.data.prepare.instruct import prepare_instruct
from tests.support.tiny_models import byte_tokenizer

SEQ_LEN = 200  # of a prompt style of about 130 bytes


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def asked(prompt: str, completion: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": completion}


def check(sources: list[str], *, tokenizer: str | None = None, kind: str = "instruct", **wanted: Any) -> CorpusFindings:
    options = RowOptions.model_validate({"kind": kind, "seq_len": SEQ_LEN, "style": "alpaca"})
    return check_conversations(sources, RowCheck(options=options, **{"near": False, **wanted}), tokenizer=tokenizer)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 150), st.integers(0, 40)), min_size=2, max_size=25),
)
def test_it_tells_what_is_made_of_them(
    lengths: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    tokenizer = byte_tokenizer(folder / "tokenizer.json")
    rows = [asked(f"{number} " + "a" * asks, "b" * answers) for number, (asks, answers) in enumerate(lengths)]
    source = write(folder / "a.jsonl", [*rows, asked("one", "two"), asked("three", "four")])
    found = check([source], tokenizer=tokenizer, limit=SEQ_LEN)
    made = prepare_instruct(
        [source],
        tokenizer=tokenizer,
        out=str(folder / "out"),
        options=RowOptions(seq_len=SEQ_LEN, style="alpaca"),
    )
    assert made.instruct is not None
    longer = made.instruct.dropped.pop(TOO_LONG, 0)
    assert found.lengths[0].longer == longer
    assert found.dropped == made.instruct.dropped
    assert found.total == made.documents + longer
    assert found.total + found.empty + sum(found.dropped.values()) == len(rows) + 2


def test_the_held_out_ones_are_those_of_a_preparation(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    source = write(tmp_path / "a.jsonl", [asked(f"question {number}", "yes") for number in range(200)])
    found = check([source], tokenizer=tokenizer, validation=0.2, seed=5)
    made = prepare_instruct(
        [source],
        tokenizer=tokenizer,
        out=str(tmp_path / "out"),
        options=RowOptions(seq_len=SEQ_LEN, style="alpaca"),
        validation=0.2,
        seed=5,
    )
    assert found.documents == {name: split.documents for name, split in made.splits.items()}
    with pytest.raises(ValueError, match="no tokenizer is named"):
        check([source], validation=0.2)


def test_every_fault_has_its_place_and_none_ends_the_check(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{no\n{"foo": 1}\n3\n' + json.dumps(asked("x", "y")) + "\n")
    (tmp_path / "b.json").write_text("[{]")
    write(tmp_path / "c.jsonl", [asked("x", "y"), {"messages": [{"role": "assistant", "content": ""}]}])
    found = check([str(tmp_path)])
    places = [Path(one.file).name for one in found.rejects.listed]
    assert places == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.json"]
    reasons = [one.reason for one in found.rejects.listed]
    expected = ("is not JSON", "no turns that are known", "a row is an object", "JSON")
    assert all(said in reason for said, reason in zip(expected, reasons, strict=True))
    assert (found.rejects.count, found.total, found.empty, found.duplicates_exact) == (4, 2, 1, 1)


def test_the_same_in_another_shape_is_the_same(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "two and two?"}, {"role": "assistant", "content": "four"}]
    source = write(tmp_path / "a.jsonl", [asked("two and two?", "four"), {"messages": turns}, asked("four", "2 + 2?")])
    held = write(tmp_path / "held.jsonl", [{"instruction": "two and two?", "output": "four"}])
    found = check([source], against=(held,))
    assert (found.duplicates_exact, found.overlap_exact) == (1, 1)
    assert found.documents == {"train": 3, "validation": 1}


def test_a_validation_file_of_a_folder_is_held_out(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [asked("a", "b")])
    write(tmp_path / "validation.jsonl", [asked("c", "d"), asked("a", "b")])
    found = check([str(tmp_path)])
    assert (found.documents, found.overlap_exact) == ({"train": 1, "validation": 2}, 1)


def test_pairs_count_once_and_their_tokens_together(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    rows = [{"prompt": "q", "chosen": "good", "rejected": "bad"}, {"prompt": "q", "chosen": "x", "rejected": "x"}]
    source = write(tmp_path / "a.jsonl", rows)
    found = check([source], tokenizer=tokenizer, kind="preference")
    made = prepare_instruct(
        [source],
        tokenizer=tokenizer,
        out=str(tmp_path / "out"),
        options=RowOptions(kind="preference", seq_len=1000, style="alpaca"),
    )
    assert made.instruct is not None and found.dropped == made.instruct.dropped and len(found.dropped) == 1
    assert (found.total, found.kind) == (1, "preference")
    assert found.lengths[0].total == made.tokens - 1


def test_control_tokens_and_signs_of_what_is_said(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    found = check([write(tmp_path / "a.jsonl", [asked("a \0", "b <|endoftext|> c")])], tokenizer=tokenizer)
    assert [(one.what, one.count) for one in found.control_tokens] == [("<|endoftext|>", 1)]
    assert [(one.what, one.count) for one in found.control_characters] == [("NUL", 1)]
