"""The caches of this user: text that was prepared for runs, and chunks of stores. Shown, and cleared.

Entries that a live process reads are in use and stay. Knows no run and no recipe.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from launchyard.host.folders import user_cache_folder
from launchyard.host.locks import try_lock
from launchyard.storage.files import typed_path
from launchyard.training.data.cache import cache_files
from launchyard.training.data.index import DATASET, INDEX, Dataset, read_dataset

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Text:
    """Prepared text. `dataset` is None while it is not finished."""

    path: str
    bytes: int
    made: float  # Unix time
    in_use: bool
    dataset: Dataset | None

    @property
    def summary(self) -> str:
        if self.dataset is None:
            return "unfinished"
        names = [os.path.basename(source.name) for source in self.dataset.sources]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{names[0] if names else '?'}{more}, {self.dataset.tokens:,} tokens"


@dataclass(frozen=True)
class Cached:
    """Everything in the caches; `quota` in bytes, for all chunks together."""

    texts: tuple[Text, ...]
    chunks_folder: str
    quota: int
    sources: tuple[cache_files.CachedSource, ...]

    @property
    def chunk_bytes(self) -> int:
        return sum(source.bytes for source in self.sources)

    def to_json(self) -> dict[str, Any]:
        texts = [
            {"path": text.path, "bytes": text.bytes, "made": text.made, "in_use": text.in_use, "what": text.summary}
            for text in self.texts
        ]
        chunks = {"folder": self.chunks_folder, "bytes": self.chunk_bytes, "quota": self.quota}
        return {"texts": texts, "chunks": {**chunks, "sources": [asdict(source) for source in self.sources]}}


def read_caches(chunks_folder: str | None = None, quota: int | None = None) -> Cached:
    """Reads the caches. The folder of chunks and its quota are the user's own unless a cluster names others."""
    folder = os.path.abspath(typed_path(chunks_folder)) if chunks_folder else cache_files.default_folder()
    sources = tuple(cache_files.sources(folder))
    return Cached(tuple(_texts()), folder, cache_files.default_quota(folder) if quota is None else quota, sources)


def clear(found: Cached) -> tuple[int, list[str]]:
    """Removes entries that are not in use. Returns the bytes removed, and the entries that stayed."""
    freed, stayed = cache_files.remove_unused(found.chunks_folder)
    for text in found.texts:
        if _remove(text.path):
            freed += text.bytes
        else:
            stayed.append(text.path)
    return freed, stayed


def _texts() -> Iterator[Text]:
    base = os.fspath(user_cache_folder("data"))
    for name in sorted(os.listdir(base)) if os.path.isdir(base) else []:
        path = os.path.join(base, name)
        if not os.path.isdir(path):
            continue
        inner = [os.path.join(folder, file) for folder, _, files in os.walk(path) for file in files]
        size = sum(os.path.getsize(file) for file in inner)
        with ExitStack() as stack:
            in_use = not _alone(path, stack)
        try:
            dataset = read_dataset(path)
        except ValueError:  # damaged, or of another version
            dataset = None
        made = os.path.getmtime(os.path.join(path, DATASET) if dataset else path)
        yield Text(path, size, made, in_use, dataset)


def _remove(path: str) -> bool:
    with ExitStack() as stack:
        alone = _alone(path, stack)
        if alone:
            shutil.rmtree(path)
        return alone


def _alone(path: str, stack: ExitStack) -> bool:
    """Returns True if no process prepares or reads a text; none will until the stack is closed."""
    locks = [f"{path}.lock", *(os.path.join(path, split, INDEX) for split in SPLITS)]
    for name in locks:
        if os.path.exists(name):
            file = os.open(name, os.O_RDONLY)
            stack.callback(os.close, file)
            if not try_lock(file):
                return False
    return True
