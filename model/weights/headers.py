"""The files of a Hugging Face folder that hold weights: which tensor lies where. Light; reads no tensor."""

from __future__ import annotations

import json

from launchyard.storage import files
from launchyard.storage.errors import CorruptError
from launchyard.storage.files import exists
from launchyard.storage.safetensors import TensorFile

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BIN_SINGLE = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"


def open_headers(folder: str) -> dict[str, TensorFile]:
    """Their key -> the file that holds it; empty of a folder without such files. CorruptError names a damaged one."""
    if exists(f"{folder}/{INDEX}"):
        return _open_indexed(folder)
    if exists(f"{folder}/{SINGLE}"):
        file = TensorFile(f"{folder}/{SINGLE}")
        return dict.fromkeys(file.entries, file)
    return {}


def stored_in(folder: str) -> dict[str, str]:
    """Their key -> the name of its file, by the index where there is one; empty of a folder without such files."""
    if exists(f"{folder}/{INDEX}"):
        return _weight_map(folder, INDEX)
    return dict.fromkeys(open_headers(folder), SINGLE)


def bins_of(folder: str) -> dict[str, list[str]]:
    """.bin file -> the keys that its index says it holds, none where it needs no index. Reads none of them."""
    if not exists(f"{folder}/{BIN_INDEX}"):
        return {BIN_SINGLE: []} if exists(f"{folder}/{BIN_SINGLE}") else {}
    return _by_file(_weight_map(folder, BIN_INDEX))


def _weight_map(folder: str, index: str) -> dict[str, str]:
    path = f"{folder}/{index}"
    kind = ".bin" if index == BIN_INDEX else ".safetensors"
    try:
        weight_map = dict(json.loads(files.read(path))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is no readable index: {error}") from error
    for name in sorted(set(weight_map.values())):
        if "/" in name or not name.endswith(kind):
            raise ValueError(f"{path} names {name!r}; only {kind.removeprefix('.')} files beside it are read")
    return weight_map


def open_holding(folder: str, name: str, *keys: str) -> TensorFile:
    """A file that the index says holds these; CorruptError if it is missing or does not."""
    try:
        file = TensorFile(f"{folder}/{name}")
    except FileNotFoundError as error:
        raise CorruptError(f"{folder}/{name} is missing; {INDEX} names it") from error
    for key in keys:
        if key not in file.entries:
            raise CorruptError(f"{folder}/{name} does not hold {key}, as {INDEX} says")
    return file


def _open_indexed(folder: str) -> dict[str, TensorFile]:
    weight_map = _weight_map(folder, INDEX)
    by_file = _by_file(weight_map)
    opened = {name: open_holding(folder, name, *by_file[name]) for name in sorted(by_file)}
    return {key: opened[name] for key, name in weight_map.items()}


def _by_file(weight_map: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        found.setdefault(name, []).append(key)
    return found
