"""Every usual shape and carrier of instruction data gives the same conversations; what is wrong is named at once."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from launchyard.training.data.instruct.carriers import Record, to_record
from launchyard.training.data.instruct.conversation import Conversation, Turn
from launchyard.training.data.instruct.shapes import conversation_of, pair_of, read_conversations, read_pairs

ASK, ANSWER = Turn("user", "Capital of France?"), Turn("assistant", "Paris.", trained=True)
CALL = {"type": "function", "function": {"name": "find", "arguments": {"city": "Paris"}}}
SHAPES: list[dict[str, Any]] = [
    {"instruction": "Capital of France?", "input": "", "output": "Paris."},
    {"instruction": "Capital of France?", "output": "Paris.", "id": 7},
    {"instruction": "Capital of France?", "context": None, "response": "Paris."},
    {"prompt": "Capital of France?", "completion": "Paris."},
    {"prompt": [{"role": "user", "content": "Capital of France?"}],
     "completion": [{"role": "assistant", "content": "Paris."}]},
    {"question": "Capital of France?", "answer": "Paris."},
    {"query": "Capital of France?", "response": "Paris."},
    {"input": "Capital of France?", "output": "Paris."},
    {"conversations": [{"from": "human", "value": "Capital of France?"}, {"from": "gpt", "value": "Paris."}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Capital of"}, " France?"]},
                  {"role": "assistant", "content": "Paris.", "tool_calls": None, "name": None}]},
    {"messages": json.dumps([{"role": "user", "content": "Capital of France?"},
                             {"role": "assistant", "content": "Paris."}])},
]  # fmt: skip


def read(row: dict[str, Any], **options: Any) -> Conversation:
    record = to_record(row, "f:1")
    assert isinstance(record, Record)
    return conversation_of(record, **options)


@pytest.mark.parametrize("row", SHAPES, ids=lambda row: "+".join(row))
def test_every_shape_gives_the_same_turns(row: dict[str, Any]) -> None:
    assert read(row).turns == (ASK, ANSWER)


@pytest.mark.parametrize("beside", [{}, {"instruction": "other", "output": "other"}, {"messages": []}])
def test_columns_name_what_no_shape_has(beside: dict[str, Any]) -> None:
    row = {"frage": "Capital of France?", "antwort": "Paris.", **beside}
    assert read(row, columns={"prompt": "frage", "completion": "antwort"}).turns == (ASK, ANSWER)


def test_systems_tools_and_weights_are_kept() -> None:
    row = {
        "system": "Be short.", "tools": json.dumps([{"name": "find"}]),
        "messages": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "Let me see.", "weight": 0},
            {"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": '{"city": "Paris"}'}}]},
            {"role": "tool", "content": "there", "name": "find"},
            {"role": "assistant", "content": "There.", "weight": 1},
        ],
    }  # fmt: skip
    found = read(row)
    assert found.tools == ({"type": "function", "function": {"name": "find"}},)
    assert found.turns == (
        Turn("system", "Be short."), Turn("user", "Where?"), Turn("assistant", "Let me see."),
        Turn("assistant", "", trained=True, tool_calls=(CALL,)), Turn("tool", "there", name="find"),
        Turn("assistant", "There.", trained=True),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"a": 1, "b": 2}, "its keys are a, b; name them with data.columns"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "kind preference"),
        ({"question": "x", "answer": 42}, "answer is 42, which is no text"),
        ({"messages": [{"role": "moderator", "content": "x"}]}, r"messages\[0\] has the role 'moderator'; known are"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "part of type 'image'; only text"),
        ({"messages": [{"role": "assistant"}]}, "says nothing"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "has the role"),
        ({"instruction": "", "output": "x"}, "instruction is empty"),
        ({"prompt": [{"role": "user", "content": "x"}], "completion": "y", "input": "z"}, "put it into one of them"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "allowed are 0 and 1"),
    ],
)
def test_a_faulty_row_says_why(row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(row)


PAIRS: list[dict[str, Any]] = [
    {"prompt": "Capital of France?", "chosen": "Paris.", "rejected": "Rome."},
    {"chosen": [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris."}],
     "rejected": [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Rome."}]},
    {"prompt": [{"role": "user", "content": "Capital of France?"}],
     "chosen": [{"role": "assistant", "content": "Paris."}], "rejected": [{"role": "assistant", "content": "Rome."}]},
    {"prompt": "Capital of France?",
     "chosen": [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris."}],
     "rejected": [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Rome."}]},
]  # fmt: skip


@pytest.mark.parametrize("row", PAIRS, ids=range(len(PAIRS)))
def test_pairs_share_what_they_answer(row: dict[str, Any]) -> None:
    pair = pair_of(Record(row, "f:1"))
    assert pair.chosen.turns == (ASK, ANSWER)
    assert pair.rejected.turns == (ASK, Turn("assistant", "Rome.", trained=True))


def test_an_empty_answer_is_not_trained_for() -> None:
    assert not any(turn.trained for turn in read({"instruction": "x", "output": ""}).turns)


def test_what_a_pair_is_about_is_kept() -> None:
    pair = pair_of(
        Record({"instruction": "Capital?", "input": "France", "chosen": "Paris.", "rejected": "Rome."}, "f:1")
    )
    assert pair.chosen.turns[0] == pair.rejected.turns[0] == Turn("user", "Capital?", input="France")


def rows(n: int) -> list[dict[str, Any]]:
    return [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(n)]


def lines(n: int) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\r\n\r\n" for row in rows(n))


def write_arrow(path: Path, content: list[dict[str, Any]]) -> None:
    """As save_to_disk of `datasets` does: null for each key that a row lacks, in a stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist([{**row, "messages": None} for row in content])
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def write_carriers(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(3))
    (folder / "b.json").write_text(json.dumps(rows(3)))
    (folder / "c.json").write_text(json.dumps({"version": "1", "data": rows(3)}))
    (folder / "d.jsonl.gz").write_bytes(gzip.compress(lines(3)))
    (folder / "e.jsonl.zst").write_bytes(zstandard.compress(lines(3)))
    (folder / "f.json").write_bytes(lines(3))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(3)), folder / "g.parquet")
    saved = folder / "saved"
    write_arrow(saved / "train" / "data-00000-of-00001.arrow", rows(3))
    write_arrow(saved / "validation" / "data-00000-of-00001.arrow", rows(9)[3:5])
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (saved / "train" / "state.json").write_text(json.dumps(state))
    write_arrow(saved / "train" / "cache-0123.arrow", rows(9)[5:])  # what `map` leaves behind
    (saved / "train" / "dataset_info.json").write_text("{}")


def test_every_carrier_gives_the_same_rows(tmp_path: Path) -> None:
    write_carriers(tmp_path)
    expected = [(Turn("user", f"q{i}"), Turn("assistant", f"a{i}", trained=True)) for i in range(3)]
    for carrier in sorted(tmp_path.iterdir()):
        assert [found.turns for found in read_conversations([str(carrier)])] == expected, carrier.name
    held_out = list(read_conversations([str(tmp_path / "saved")], split="validation"))
    assert [found.turns[0].content for found in held_out] == ["q3", "q4"]


def test_names_in_a_folder_tell_the_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "valid.jsonl", "test.jsonl"):
        (tmp_path / name).write_bytes(lines(2))
    assert len(list(read_conversations([str(tmp_path)]))) == 4
    assert len(list(read_conversations([str(tmp_path)], split="validation"))) == 2
    assert len(list(read_conversations([str(tmp_path / "test.jsonl")]))) == 2  # asked for by its name


@pytest.mark.parametrize(
    ("train", "held_out"), [("alpaca_train", "alpaca_val"), ("sft-train", "sft-dev"), ("a", "my_val")]
)
def test_a_word_anywhere_in_a_name_tells_the_split(tmp_path: Path, train: str, held_out: str) -> None:
    (tmp_path / f"{train}.jsonl").write_bytes(lines(3))
    (tmp_path / f"{held_out}.jsonl").write_bytes(lines(2))
    counts = [len(list(read_conversations([str(tmp_path)], split=split))) for split in ("train", "validation")]
    assert counts == [3, 2]


def test_all_faulty_rows_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    bad = [b'{"instruction": "a"}\n', b"{not json}\n", b"[1]\n", b'{"instruction": "x", "output": 3}\n']
    path.write_bytes(lines(1) + b"".join(bad) + b"[]\n" * 20)
    with pytest.raises(ValueError, match="24 of 25 rows are faulty") as error:
        list(read_conversations([str(path)]))
    text = str(error.value)
    for line in (3, 4, 5, 6):
        assert f"{path}:{line}: " in text
    assert "… and 14 more" in text


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(50)), tmp_path / "whole.parquet")
    cut = {
        "f.jsonl.gz": gzip.compress(lines(50)),
        "f.jsonl.zst": zstandard.compress(lines(50)),
        "f.parquet": (tmp_path / "whole.parquet").read_bytes(),
    }
    for name, raw in cut.items():
        (tmp_path / name).write_bytes(raw[: len(raw) // 2])
        with pytest.raises(ValueError, match=re.escape(name) + " is damaged"):
            list(read_conversations([str(tmp_path / name)]))
    (tmp_path / "g.json").write_text('[{"a": 1}')
    with pytest.raises(ValueError, match=r"g\.json is not JSON"):
        list(read_pairs([str(tmp_path / "g.json")]))


def test_a_file_of_one_row_with_tools_is_that_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"instruction": "why?", "output": "because", "tools": [{"name": "look"}]}))
    (row,) = read_conversations([str(path)])
    assert [turn.content for turn in row.turns] == ["why?", "because"]
    assert row.tools[0]["function"] == {"name": "look"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_half_a_character_is_a_fault_of_its_row(name: str, tmp_path: Path) -> None:
    rows = [{"prompt": "why?", "completion": "because"}, {"prompt": "why \ud83d", "completion": "because"}]
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name == "rows.json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"1 of 2 rows are faulty:\n.*(:2|row 2): has half a character"):
        list(read_conversations([str(path)]))


def test_a_mapping_of_columns_that_fits_no_row_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"frage": str(n), "antwort": "ja"}) for n in range(30)))
    asked = {"prompt": "frage", "completion": "antwrt"}
    with pytest.raises(ValueError, match=r"^all 30 rows are faulty alike; .*a\.jsonl:1: has no column antwrt"):
        list(read_conversations([str(path)], columns=asked))
    with pytest.raises(ValueError, match=r"^data\.columns: promptx is none of messages"):
        list(read_conversations([str(path)], columns={"promptx": "frage"}))


def test_a_text_alone_has_no_system_message() -> None:
    (turn,) = conversation_of(Record({"text": "Once.", "system": "Be kind."}, "here")).turns
    assert (turn.role, turn.content, turn.trained) == ("assistant", "Once.", True)
