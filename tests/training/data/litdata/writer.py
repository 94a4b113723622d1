"""Folders of tokens made by the real litdata, of every kind that its writer makes. Needs litdata and zstd.

`python -m tests.training.data.litdata.writer` makes the small ones that are kept beside it, and notes the version.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

KEPT = Path(__file__).parent / "folders"
ITEMS = ([3, 1, 4, 1], [5], [9, 2, 6, 5, 3, 5], [8, 9, 7, 9, 3], [2, 3, 8], [4, 6, 2, 6, 4, 3, 3])
TOKENS = [token for item in ITEMS for token in item]
NUMPY = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
TORCH = ("int8", "int16", "int32", "int64", "uint8", "uint16")


def write_folder(folder: Path, items: list[Any], *, chunk_size: int = 20, **options: Any) -> None:
    """Chunks by litdata's own writer; `chunk_size` counts tokens."""
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir(parents=True)
    options.setdefault("item_loader", TokensLoader())
    writer = BinaryWriter(str(folder), chunk_size=chunk_size, **options)
    for number, item in enumerate(items):
        writer[number] = item
    writer.done()
    writer.merge(1)
    index = json.loads((folder / "index.json").read_text())
    index.pop("updated_at")  # the only byte that differs between two days
    (folder / "index.json").write_text(json.dumps(index, sort_keys=True))


def readable() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Items and options of each kind of folder that holds a stream of tokens."""
    numpy = {name: [np.array(item, name) for item in ITEMS] for name in NUMPY}
    tensors = {name: [torch.tensor(item, dtype=getattr(torch, name)) for item in ITEMS] for name in TORCH}
    plain: dict[str, tuple[list[Any], dict[str, Any]]] = {f"numpy-{name}": (numpy[name], {}) for name in NUMPY}
    plain |= {f"torch-{name}": (tensors[name], {}) for name in TORCH}
    empty = [np.array([], "uint16"), *numpy["uint16"]]
    named = [{"input_ids": item} for item in tensors["int64"]]
    whole = {"compression_level": "chunk"}
    return {
        **plain,
        "empty-first": (empty, {}),
        "one-key": (named, {}),
        "zstd": (numpy["uint16"], {"compression": "zstd", **whole}),
        "zstd-level": (tensors["int32"], {"compression": "zstd:9", **whole}),
    }


def refused() -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """The same of folders that litdata writes without a word, and that hold no such stream."""
    from litdata.streaming.item_loader import PyTreeLoader

    pairs = [{"ids": np.array(item, "int32"), "mask": np.array(item, "int32")} for item in ITEMS]
    tree = {"item_loader": PyTreeLoader()}
    return {
        "two-parts": (pairs, {}),
        "floats": ([np.array(item, "float32") for item in ITEMS], {}),
        "two-dimensions": ([torch.tensor([item, item]) for item in ITEMS], {}),
        "text": ([str(item) for item in ITEMS], {}),
        "tree": ([np.array(item, "uint16") for item in ITEMS], tree),
        "frames": ([np.array(item, "uint16") for item in ITEMS], {"compression": "zstd", **tree}),
    }


def write_kept() -> None:
    shutil.rmtree(KEPT, ignore_errors=True)
    for name, (items, options) in {**readable(), **refused()}.items():
        if name != "zstd-level":  # its files have a colon in their names, which not every disk can hold
            write_folder(KEPT / name, items, **options)
    (KEPT / "VERSION").write_text(f"litdata {version('litdata')}\n")


if __name__ == "__main__":
    write_kept()
