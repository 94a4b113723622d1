"""Folders of tokens in litdata's format, in both directions: what its writer makes, and what its reader takes of us.

Those kept in `folders` were made by the real litdata, see writer.py; the same is done afresh where it is installed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launchyard.training.data.cache.chunk_cache import ChunkCache
from launchyard.training.data.dataset_spec import open_dataset
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.data.token_store import TokenStore
from tests.training.data.litdata import writer

REFUSED = {
    "two-parts": r"an item has 2 parts, .* write it again from items that are one array each",
    "floats": r"numbers of another type than int8, .* write it again",
    "two-dimensions": r"one array of whole numbers with one dimension an item; write it again",
    "text": r"items are text or objects; write them as lines of \.jsonl and make tokens with `launch prepare`",
    "tree": r"chunk-0-0\.bin has no count of tokens .* item_loader=TokensLoader\(\)",
    "frames": r'compression_level is \'batch\': .* compression_level="chunk"',
}
READ = [folder.name for folder in sorted(writer.KEPT.iterdir()) if folder.is_dir() and folder.name not in REFUSED]


def tokens_of(folder: Path, cache: Path) -> list[int]:
    spec = open_dataset(str(folder))
    store = TokenStore(str(folder), cache=ChunkCache(str(cache)))
    assert store.n_tokens == spec.n_tokens
    for number in range(len(store.chunks)):
        store.verify(number)
    return [int(token) for token in store.read(0, store.n_tokens)]


def test_every_kind_is_kept() -> None:
    assert len(READ) == len(writer.NUMPY) + len(writer.TORCH) + 3
    assert (writer.KEPT / "VERSION").read_text() == "litdata 0.2.76\n"


@pytest.mark.parametrize("name", READ)
def test_what_litdata_writes(name: str, tmp_path: Path) -> None:
    assert tokens_of(writer.KEPT / name, tmp_path) == writer.TOKENS


def test_a_level_of_compression(tmp_path: Path) -> None:
    """zstd:9 writes the same files as zstd, under other names."""
    shutil.copytree(writer.KEPT / "zstd", tmp_path / "a")
    text = (tmp_path / "a" / "index.json").read_text()
    (tmp_path / "a" / "index.json").write_text(text.replace('"zstd"', '"zstd:9"').replace(".zstd.bin", ".zstd:9.bin"))
    for path in (tmp_path / "a").glob("*.zstd.bin"):
        path.rename(path.with_name(path.name.replace(".zstd.", ".zstd:9.")))
    assert tokens_of(tmp_path / "a", tmp_path / "cache") == writer.TOKENS


@pytest.mark.parametrize("name", REFUSED)
def test_what_holds_no_stream_of_tokens(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        open_dataset(str(writer.KEPT / name))
    assert str(caught.value).startswith(f"{writer.KEPT / name}/index.json: ")


# -- with litdata itself ---------------------------------------------------------------------------------------------
def test_what_the_installed_litdata_writes(tmp_path: Path) -> None:
    pytest.importorskip("litdata", reason="litdata is not installed")
    for name, (items, options) in writer.readable().items():
        writer.write_folder(tmp_path / name, items, **options)
        assert tokens_of(tmp_path / name, tmp_path / "cache") == writer.TOKENS, name
    for name, (items, options) in writer.refused().items():
        writer.write_folder(tmp_path / name, items, **options)
        with pytest.raises(ValueError, match=REFUSED[name]):
            open_dataset(str(tmp_path / name))


@pytest.mark.filterwarnings("ignore")
def test_litdata_reads_what_we_prepare(tmp_path: Path, novel: str, tokenizer_file: str) -> None:
    """Its blocks leave out the end of a chunk that fills no block; all they hold is the stream, chunk by chunk."""
    streaming = pytest.importorskip("litdata.streaming", reason="litdata is not installed")
    (tmp_path / "a.txt").write_text(novel[:40_000])
    prepare([str(tmp_path / "a.txt")], tokenizer=tokenizer_file, out=str(tmp_path / "out"), chunk_tokens=3000)
    folder = tmp_path / "out" / "train"
    loader = streaming.item_loader.TokensLoader(block_size=64)
    theirs = [block.tolist() for block in streaming.StreamingDataset(str(folder), item_loader=loader)]
    store = TokenStore(str(folder))
    ours = []
    for number, entry in enumerate(json.loads((folder / "index.json").read_text())["chunks"]):
        tokens = store.chunk(number).tolist()
        ours += [tokens[start : start + 64] for start in range(0, entry["dim"] - 63, 64)]
    assert theirs == ours
