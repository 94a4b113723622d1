"""A corpus by name: fetched up to a limit, over connections that are cut, and then tokens."""

from __future__ import annotations

import io
import json
import random
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launchyard.launcher.hub.selection import Choice, keep_to_limits
from launchyard.training.data.index import read_dataset
from tests.launcher.hub.hub_server import SmallHub
from tests.launcher.hub.test_datasets import content_of
from tests.launcher.hub.test_download import hub, main
from tests.support.tiny_models import byte_tokenizer

__all__ = ["hub"]
PART = "sample/10BT/{:03}_00000.parquet"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def part_of(number: int) -> bytes:
    """Three rows; parts differ, as the hub's cache keeps equal files once."""
    made = io.BytesIO()
    draw = random.Random(number)
    pq.write_table(pa.Table.from_pylist([{"text": draw.randbytes(2000).hex()} for _ in range(3)]), made)
    return made.getvalue()


@pytest.fixture
def fineweb(hub: SmallHub) -> SmallHub:
    parts = {PART.format(number): part_of(number) for number in range(5)}
    others = {
        "README.md": b"card",
        "data/CC-MAIN-2024-10/000_00000.parquet": b"another",
        "sample/100BT/0.parquet": b"x",
    }
    hub.models["datasets/HuggingFaceFW/fineweb"] = {**others, **parts}
    return hub


def parquet_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).rglob("*.parquet"))


def test_a_limit_is_kept_and_can_be_raised(fineweb: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    size = len(part_of(0))
    code, out, err = run(capsys, "fetch-corpus", "fineweb", "--max-bytes", str(2 * size + 10))
    assert code == 0, err
    assert parquet_in(out.strip()) == ["000_00000.parquet", "001_00000.parquet"]
    fineweb.requests.clear()
    code, out, err = run(capsys, "fetch-corpus", "fineweb", "--files", "3")
    assert code == 0 and parquet_in(out.strip()) == [f"{number:03}_00000.parquet" for number in range(3)]
    assert fineweb.fetched() == ["002_00000.parquet"]
    code, _, err = run(capsys, "fetch-corpus", "fineweb", "--max-bytes", "10")
    assert code == 2 and f"000_00000.parquet, has {size:,}" in err
    code, _, err = run(capsys, "download", "org/m", "--max-bytes", "1GB")
    assert code == 2 and "only with --dataset" in err
    code, _, err = run(capsys, "fetch-corpus", "fineweb", "--max-bytes", "much")
    assert code == 2 and "write such as 20GB" in err


def test_connections_that_are_cut_go_on_and_prepare_reads_it(
    fineweb: SmallHub, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command that it prints itself."""
    monkeypatch.chdir(tmp_path)
    fineweb.cut_after = 4000
    fineweb.failures = [503]
    code, out, err = run(capsys, "fetch-corpus", "fineweb", "--files", "2", "--out", "corpus")
    assert code == 0, err
    for number in range(2):
        path = PART.format(number)
        assert Path(out.strip(), path).read_bytes() == fineweb.models["datasets/HuggingFaceFW/fineweb"][path]
    assert any(asked == "bytes=4000-" for _, _, asked in fineweb.requests)
    assert not list(Path(out.strip()).rglob("*.incomplete"))
    asked = re.search(r"next: launch (.*)", err)
    assert asked is not None
    tokenizer = str(byte_tokenizer(tmp_path / "tokenizer.json"))
    words = [tokenizer if word == "T" else word for word in shlex.split(asked[1])]
    code, _, err = run(capsys, *words)
    assert code == 0, err
    made = read_dataset("data/fineweb")
    assert made is not None and made.documents == 6


def test_nothing_is_fetched_by_a_dry_run(fineweb: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "fetch-corpus", "fineweb", "--files", "2", "--dry-run", "--json")
    assert code == 0 and not fineweb.fetched()
    assert [one["path"] for one in json.loads(out)["files"]] == ["README.md", PART.format(0), PART.format(1)]


def test_code_has_its_text_in_another_column(hub: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.models["datasets/bigcode/starcoderdata"] = {"python/train-0.parquet": content_of("starcoder", "x.parquet")}
    hub.gated = {"datasets/bigcode/starcoderdata"}
    code, _, err = run(capsys, "fetch-corpus", "starcoder")
    assert code == 2 and "is gated" in err and "HF_TOKEN" in err
    hub.gated = set()
    code, _, err = run(capsys, "fetch-corpus", "starcoder")
    assert code == 0 and "--text-key content" in err


def test_limits_count_data_alone() -> None:
    sizes = {"README.md": 10**9, "b": 5, "a": 5, "c": 1}
    assert keep_to_limits(sizes, Choice(max_bytes=10), repo="r") == ["README.md", "a", "b"]
    assert keep_to_limits(sizes, Choice(max_files=1, max_bytes=100), repo="r") == ["README.md", "a"]
