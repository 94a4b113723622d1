"""From files of any usual carrier to records: JSON, JSON lines, parquet, and what `save_to_disk` of `datasets` writes.

A record is a mapping whose keys with null are left out, as arrow writes null for every key that a row lacks. Light:
packages of a format are imported when it is met. Knows no conversation.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from launchyard.host.packages import install_command
from launchyard.storage import files
from launchyard.storage.damage import JsonObject
from launchyard.storage.redact import without_credentials
from launchyard.training.data.prepare.sources import every_file

if TYPE_CHECKING:
    import zstandard

Split = Literal["train", "validation", "test"]
KINDS = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow")
_ALLOWED = f"allowed are {' '.join(KINDS)} and folders of them; .gz or .zst of the first three"
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "eval": "validation", "test": "test",
}  # fmt: skip
_BESIDE = {"dataset_info.json", "state.json", "dataset_dict.json"}  # of save_to_disk, beside its arrow files


@dataclass(frozen=True)
class Record:
    """One row. where: FILE:LINE, or FILE, row N."""

    value: JsonObject
    where: str


class FaultyRowError(ValueError):
    """One row that is no record; the rest of its file can be read."""


def find_files(sources: Sequence[str], split: Split = "train") -> list[str]:
    """The files of a split, in order. Those of a folder whose names tell of no split are all of `train`.

    ValueError for a source that does not exist or holds no file of a known kind.
    """
    found: list[str] = []
    for source in sources:
        every = [path for path, _, _ in every_file([source])]
        known = [path for path in every if _kind(path) and path.rpartition("/")[2] not in _BESIDE]
        known = _saved(known, every)
        if not known:
            raise ValueError(f"{without_credentials(source)} holds no rows among its {len(every)} files; {_ALLOWED}")
        place = source if "://" in source else os.path.abspath(source)
        root = None if place in every else place.rstrip("/")
        splits = {path: split_of(path, root) for path in known}
        if root is None or not any(splits.values()):
            found += known if split == "train" else []
        else:
            found += [path for path in known if (splits[path] or "train") == split]
    return found


def _saved(known: list[str], every: list[str]) -> list[str]:
    """Without what lies in a folder of save_to_disk and is none of its files, such as caches of `map`."""
    listed: dict[str, set[str]] = {}
    for path in every:
        folder, _, name = path.rpartition("/")
        if name == "state.json":
            try:
                files_of = json.loads(files.read(path)).get("_data_files")
                listed[folder] = {one["filename"] for one in files_of} if files_of else set()
            except (ValueError, AttributeError, TypeError, KeyError) as error:
                raise ValueError(f"{without_credentials(path)} is not as save_to_disk writes it: {error}") from error
    kept = []
    for path in known:
        folder, _, name = path.rpartition("/")
        if not listed.get(folder) or name in listed[folder]:
            kept.append(path)
    return kept


def split_of(path: str, root: str | None) -> Split | None:
    """The split that a word of a file's name, or of one of its folders below `root`, tells; None if none does."""
    below = path[len(root) :] if root and path.startswith(root) else path.rpartition("/")[2]
    *folders, name = below.strip("/").split("/")
    for part in (name, *reversed(folders)):
        words = re.split(r"[^a-z]+", part.lower())
        if (found := next((_SPLIT_NAMES[word] for word in words if word in _SPLIT_NAMES), None)) is not None:
            return found
    return None


def read_records(path: str) -> Iterator[Record | FaultyRowError]:
    """The rows of one file; a row that is no record as the error that says why. ValueError for a damaged file."""
    kind, compression = _kind(path) or ("", None)
    name = without_credentials(path)
    try:
        raw = _plain(files.read(path), compression, name)
        if kind == ".parquet":
            yield from _of_table(_parquet(raw), name)
        elif kind == ".arrow":
            yield from _of_table(_arrow(raw), name)
        elif kind == ".json" and not _is_lines(raw):
            yield from _of_list(raw, name)
        else:
            yield from _of_lines(raw, name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 near byte {error.start}; convert it with iconv") from error
    except RecursionError as error:
        raise ValueError(f"{name} holds JSON that is nested too deep") from error


def _kind(path: str) -> tuple[str, str | None] | None:
    stem = path.lower()
    compression = next((last for last in (".gz", ".zst") if stem.endswith(last)), None)
    stem = stem.removesuffix(compression or "")
    kind = next((kind for kind in KINDS if stem.endswith(kind)), None)
    return None if kind is None or (compression and kind in (".parquet", ".arrow")) else (kind, compression)


def _plain(raw: bytes, compression: str | None, name: str) -> bytes:
    try:
        if compression == ".gz":
            return gzip.decompress(raw)
        if compression == ".zst":
            import zstandard

            return _unzstd(raw, zstandard.ZstdDecompressor())
    except ModuleNotFoundError as error:
        raise ValueError(f"{name} needs the package zstandard: {install_command('data')}") from error
    except Exception as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    return raw


def _unzstd(raw: bytes, engine: zstandard.ZstdDecompressor) -> bytes:
    """All frames of it; ValueError if the last one is cut, which a stream reader passes over."""
    parts = []
    while raw:
        frame = engine.decompressobj()
        parts.append(frame.decompress(raw))
        if not frame.eof:
            raise ValueError("its compressed data ends too early")
        raw = frame.unused_data
    return b"".join(parts)


def _is_lines(raw: bytes) -> bool:
    """True for JSON lines under the name .json, as many hubs have them."""
    text = raw.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text.startswith(b"{"):
        return False
    first, _, rest = text.partition(b"\n")
    try:
        json.loads(first)
    except ValueError:
        return False
    return bool(rest.strip())


def _of_lines(raw: bytes, name: str) -> Iterator[Record | FaultyRowError]:
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            value = json.loads(line.decode())
        except UnicodeDecodeError:
            yield FaultyRowError(f"{where}: is not UTF-8")
        except ValueError as error:
            yield FaultyRowError(f"{where}: is not JSON: {error}")
        else:
            yield _of_json(value, where)


def _of_json(value: object, where: str) -> Record | FaultyRowError:
    """A row of JSON, which can hold half of a surrogate pair where arrow cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return FaultyRowError(f"{where}: has half a character (a lone surrogate, {error.object[error.start]!r})")
    return to_record(value, where)


def _of_list(raw: bytes, name: str) -> Iterator[Record | FaultyRowError]:
    """A list of rows, or one list of them under a key such as `data`."""
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if isinstance(value, dict):
        lists = [
            key
            for key, inner in value.items()
            if isinstance(inner, list) and _is_row(next(iter(inner), None)) and key not in ("tools", "functions")
        ]
        chosen = next((key for key in ("train", "data", "rows", "examples", "instances") if key in lists), None)
        if chosen is None and (len(lists) != 1 or {"messages", "conversations"} & value.keys()):
            value = [value]
        else:
            value = value[chosen or lists[0]]
    if not isinstance(value, list):
        raise ValueError(f"{name} holds {_named(value)}; it must be a list of objects, or lines of them")
    for number, one in enumerate(value, start=1):
        yield _of_json(one, f"{name}, row {number}")


def _parquet(raw: bytes) -> Iterator[object]:
    import pyarrow.parquet

    for batch in pyarrow.parquet.ParquetFile(io.BytesIO(raw)).iter_batches(batch_size=1024):
        yield from batch.to_pylist()


def _arrow(raw: bytes) -> Iterator[object]:
    """Rows of a stream, as save_to_disk writes it, or of a file."""
    import pyarrow.ipc

    if raw.startswith(b"ARROW1"):
        file = pyarrow.ipc.open_file(raw)
        batches = (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        batches = pyarrow.ipc.open_stream(raw)
    for batch in batches:
        yield from batch.to_pylist()


def _of_table(rows: Iterator[object], name: str) -> Iterator[Record | FaultyRowError]:
    import pyarrow

    number = 0
    while True:
        try:
            value = next(rows)
        except StopIteration:
            return
        except pyarrow.ArrowException as error:
            raise ValueError(f"{name} is damaged after row {number}: {error}") from error
        number += 1
        yield to_record(value, f"{name}, row {number}")


def to_record(value: object, where: str) -> Record | FaultyRowError:
    """A row without what is null, at any depth."""
    if not isinstance(value, dict):
        return FaultyRowError(f"{where}: is {_named(value)}; a row is an object")
    return Record(_without_null(value), where)


def _without_null(value: JsonObject) -> JsonObject:
    return {key: _cleaned(inner) for key, inner in value.items() if inner is not None}


def _cleaned(value: object) -> object:
    if isinstance(value, dict):
        return _without_null(value)
    return [_cleaned(inner) for inner in value] if isinstance(value, list) else value


def _is_row(value: object) -> bool:
    return isinstance(value, dict)


def _named(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
