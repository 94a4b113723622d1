"""Sets of data by name: fetched on request alone, by the same client as models, and read as rows or text."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launchyard.errors import UserError
from launchyard.launcher.data.resolve import ensure_prepared, resolve
from launchyard.training.data.built_in import BUILT_IN
from launchyard.training.data.instruct.shapes import read_conversations, read_pairs
from launchyard.training.sections.data import DataConfig
from tests.launcher.hub.hub_server import SmallHub
from tests.launcher.hub.test_download import hub, launch
from tests.support.tiny_models import byte_tokenizer

__all__ = ["hub"]
SAID = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
OTHER = [SAID[0], {"role": "assistant", "content": "no"}]
TALK = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "because"}]
HUMAN = "\n\nHuman: why?\n\nAssistant: because"
# Rows as the cards of the sets show them.
ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "why?", "input": "", "output": "because", "text": "### why? because"},
    "alpaca-cleaned": {"instruction": "why?", "input": "", "output": "because"},
    "alpaca-gpt4": {"instruction": "why?", "input": "", "output": "because", "text": "### why? because"},
    "deita": {"prompt": "why?", "prompt_id": "1", "messages": SAID},
    "dolly": {"instruction": "why?", "context": "", "response": "because", "category": "open_qa"},
    "flan": {"inputs": "why?", "targets": "because", "task": "t"},
    "lima": {"conversations": ["why?", "because"], "source": "stackexchange"},
    "longform": {"input": "why?", "output": "because", "source": "Wikipedia"},
    "openhermes": {"conversations": TALK, "source": "x", "system_prompt": None},
    "smoltalk": {"messages": SAID, "source": "x"},
    "ultrachat": {"prompt": "why?", "prompt_id": "1", "messages": SAID},
    "hh-rlhf": {"chosen": HUMAN, "rejected": HUMAN.replace("because", "no")},
    "orca-pairs": {"system": "", "question": "why?", "chosen": "because", "rejected": "no"},
    "ultrafeedback": {"prompt": "why?", "prompt_id": "1", "chosen": SAID, "rejected": OTHER, "messages": SAID,
                      "score_chosen": 8.0, "score_rejected": 2.0},
    **{key: {"text": "a story " * 40} for key, known in BUILT_IN.items() if known.kind == "tokens"},
    "starcoder": {"content": "a story " * 40},
}  # fmt: skip


def content_of(name: str, pattern: str) -> bytes:
    import gzip

    rows = [ROWS[name]] * 3
    if pattern.endswith(".parquet"):
        made = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), made)
        return made.getvalue()
    if pattern.endswith(".json"):
        return json.dumps(rows).encode()
    lines = "\n".join(map(json.dumps, rows)).encode()
    if pattern.endswith(".zst"):
        import zstandard

        return zstandard.compress(lines)
    return gzip.compress(lines) if pattern.endswith(".gz") else lines


@pytest.fixture
def sets(hub: SmallHub) -> Iterator[SmallHub]:
    for name, known in BUILT_IN.items():
        paths = {pattern.replace("*", "00000"): content_of(name, pattern) for pattern in known.files}
        beside = {"README.md": b"card", "data/other-00000.parquet": b"none of ours", "images/a.png": b"x"}
        hub.models.setdefault(f"datasets/{known.repo}", {}).update({**beside, **paths})
    yield hub


def config(name: str) -> DataConfig:
    return DataConfig.model_validate({"source": name, "kind": BUILT_IN[name].kind, "seq_len": 512, "style": "alpaca"})


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_set_is_fetched_when_asked_for_and_read_by_its_name(
    name: str, sets: SmallHub, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = str(byte_tokenizer(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="is not on this machine") as missing:
        resolve(config(name), tokenizer)
    assert missing.value.hint is not None and f"launch download --dataset {name}" in missing.value.hint
    assert not sets.requests
    code, out, err = launch(capsys, name, "--dataset", "--json")
    assert code == 0, err
    fetched = json.loads(out)
    paths = [one["path"] for one in fetched["files"]]
    assert len(paths) == len(BUILT_IN[name].files) + 1 and "README.md" in paths
    found = resolve(config(name), tokenizer, cache=str(tmp_path / "cache"))
    if BUILT_IN[name].text_key != "text":  # a recipe has no key for it
        with pytest.raises(UserError, match=r"no column 'text' .* --text-key"):
            ensure_prepared(found)
        return
    assert ensure_prepared(found).spec.n_tokens > 10
    if BUILT_IN[name].kind == "tokens":
        return
    files = [f"{fetched['folder']}/{path}" for path in paths if path != "README.md"]
    if BUILT_IN[name].kind == "preference":
        ((why, because), (_, no)) = [side.turns[-2:] for side in _sides(next(read_pairs(files)))]
        assert (why.content, because.content, no.content) == ("why?", "because", "no")
    else:
        why, because = next(read_conversations(files)).turns
        assert (why.content, why.trained, because.content, because.trained) == ("why?", False, "because", True)


def _sides(pair: Any) -> tuple[Any, Any]:
    return pair.chosen, pair.rejected


def test_any_set_of_the_hub_has_a_name(
    hub: SmallHub, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub.models["datasets/me/mine"] = {"train.jsonl": content_of("alpaca", "train.jsonl"), "notes.pdf": b"x"}
    code, out, _ = launch(capsys, "me/mine", "--dataset")
    assert code == 0 and Path(out.strip(), "train.jsonl").exists() and not Path(out.strip(), "notes.pdf").exists()
    tokenizer = str(byte_tokenizer(tmp_path / "tokenizer.json"))
    given = DataConfig.model_validate({"source": "me/mine", "kind": "instruct", "seq_len": 512, "style": "alpaca"})
    assert ensure_prepared(resolve(given, tokenizer, cache=str(tmp_path / "cache"))).spec.n_tokens > 10
    code, _, err = launch(capsys, "me/none", "--dataset")
    assert code == 2 and "has no set of data me/none; did you mean me/mine?" in err


def test_names_and_kinds_that_are_none(hub: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = launch(capsys, "alpacca", "--dataset")
    assert code == 2 and "no such set of data" in err and "alpaca-gpt4" in err
    with pytest.raises(UserError, match="alpaca holds instruct") as caught:
        resolve(DataConfig.model_validate({"source": "alpaca"}), None)
    assert caught.value.hint == "data.kind=instruct"
