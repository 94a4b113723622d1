"""Writes weights as a Hugging Face folder: safetensors, config.json, tokenizer; by the rules that hf.py reads by.

The files are planned before any tensor is read: their names, headers and sizes follow from the config.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape
from launchyard.model.text.companions import Companions, write_companions
from launchyard.model.text.special_tokens import special_ids
from launchyard.model.text.tokenizer import exported
from launchyard.model.weights.headers import INDEX, SINGLE
from launchyard.model.weights.hf import HFWeights
from launchyard.model.weights.load import OnProgress, Weights
from launchyard.model.weights.source import HF_CONFIG
from launchyard.model.weights.theirs import TheirTensors
from launchyard.model.zoo import BY_TYPE, config_to_hf, rules
from launchyard.storage import files
from launchyard.storage.errors import DeniedError
from launchyard.storage.files import listdir, normal
from launchyard.storage.safetensors import DTYPE_BYTES, dtype_code, safetensors_header, write_tensors

MAX_FILE_BYTES = 5_000_000_000


@dataclass(frozen=True)
class _File:
    """One safetensors file to be written: name -> dtype and shape of its tensors."""

    name: str
    entries: dict[str, tuple[str, TensorShape]]

    @property
    def n_bytes(self) -> int:
        """Of the whole file."""
        return len(safetensors_header(self.entries, metadata={"format": "pt"})) + self.data_bytes

    @property
    def data_bytes(self) -> int:
        return sum(_n_bytes(entry) for entry in self.entries.values())


def save_hf(
    weights: Weights | Mapping[str, Tensor],
    config: ModelConfig,
    folder: str,
    *,
    companions: Companions | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    dtype: torch.dtype | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Write a folder that transformers opens, of tensors by our names, into safetensors files.

    Holds one tensor of theirs in memory, and those of ours that it is made of. `folder` is local or any fsspec URL; a
    model that lies there is replaced. dtype: by default as the weights have it. config.json is written last, so that a
    folder that has one is whole; after an error nothing of the export is left. ValueError if a parameter is missing,
    unknown or of another shape, if the family's format has no place for one of the config's knobs, or if the weights
    lie in that folder; OSError if the disk is full.
    """
    hf = config_to_hf(config)
    root = normal(folder)
    if isinstance(weights, HFWeights) and _same(weights.folder, root):
        raise ValueError(f"{folder} holds the weights that are to be written, and is emptied first; name another")
    tensors = TheirTensors(weights, config, rules(config), dtype=dtype)
    planned = _planned(tensors, max_file_bytes)
    _remove_old(root)
    _check_space(root, sum(file.n_bytes for file in planned))
    try:
        _write_files(root, planned, tensors, on_progress)
        if companions:
            write_companions(exported(companions, max_seq_len=config.max_seq_len), root)
            hf |= special_ids(companions, rows=config.padded_vocab_size)
        code = BY_TYPE[config.family].hf_code
        if code is not None:
            files.write(f"{root}/{code}", (Path(__file__).parent / "hf_code" / code).read_bytes())
        hf["torch_dtype"] = str(_main_dtype(tensors)).removeprefix("torch.")
        files.write(f"{root}/{HF_CONFIG}", (json.dumps(hf, indent=2) + "\n").encode())
    except BaseException:
        with contextlib.suppress(OSError):  # the first error counts
            _remove_old(root)
        raise


def _same(one: str, other: str) -> bool:
    if files.is_remote(one) or files.is_remote(other):
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def _planned(tensors: TheirTensors, max_file_bytes: int) -> list[_File]:
    """The files, each filled until the next tensor would make it too large; one tensor may be larger than that."""
    entries = {key: (dtype_code(tensors.dtype(key)), shape) for key, shape in tensors.shapes.items()}
    contents: list[dict[str, tuple[str, TensorShape]]] = [{}]
    filled = 0
    for key, entry in entries.items():
        if contents[-1] and filled + _n_bytes(entry) > max_file_bytes:
            contents.append({})
            filled = 0
        contents[-1][key] = entry
        filled += _n_bytes(entry)
    count = len(contents)
    names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)] if count > 1 else [SINGLE]
    return [_File(name, content) for name, content in zip(names, contents, strict=True)]


def _write_files(root: str, planned: list[_File], tensors: TheirTensors, on_progress: OnProgress | None) -> None:
    """The files and, of several, their index."""
    report = on_progress or (lambda done, total: None)
    total = sum(file.data_bytes for file in planned)
    done = 0

    def get(key: str) -> Tensor:
        nonlocal done
        report(done, total)
        tensor = tensors.get(key)
        done += tensor.nbytes
        return tensor

    for file in planned:
        writer = files.open_write(f"{root}/{file.name}", size=file.n_bytes)
        try:
            write_tensors(writer, file.entries, get)
            writer.close()
        except BaseException:
            writer.discard()
            raise
    report(done, total)
    if len(planned) == 1:
        if files.exists(f"{root}/{INDEX}"):  # one that could not be removed: loaders would follow it
            files.remove(f"{root}/{INDEX}")
    else:
        weight_map = {key: file.name for file in planned for key in file.entries}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        files.write(f"{root}/{INDEX}", (json.dumps(index, indent=2) + "\n").encode())


def _n_bytes(entry: tuple[str, TensorShape]) -> int:
    code, shape = entry
    return DTYPE_BYTES[code] * math.prod(shape)


def _main_dtype(tensors: TheirTensors) -> torch.dtype:
    """The element type of most numbers."""
    counts: Counter[torch.dtype] = Counter()
    for key, shape in tensors.shapes.items():
        counts[tensors.dtype(key)] += math.prod(shape)
    return counts.most_common(1)[0][0]


def _check_space(root: str, n_bytes: int) -> None:
    """OSError if the disk of a local folder has fewer bytes free; of a store nobody knows."""
    if files.is_remote(root):
        return
    there = next(folder for folder in (Path(root), *Path(root).absolute().parents) if folder.is_dir())
    disk = shutil.disk_usage(there)
    if disk.free < n_bytes and disk.total:  # some file systems do not say how large they are
        why = f"No space left on device: the model takes {n_bytes:,} bytes, and {disk.free:,} are free"
        raise OSError(errno.ENOSPC, why, root)


def _remove_old(root: str) -> None:
    """config.json first: from then on there is no model here until the new one is whole.

    Where a store lets nobody delete, it is emptied, which no loader takes for a model; other files wait to be replaced.
    """
    for name in sorted(listdir(root), key=lambda name: name != HF_CONFIG):
        if name in (HF_CONFIG, INDEX) or (name.startswith("model") and name.endswith(".safetensors")):
            try:
                files.remove(f"{root}/{name}")
            except DeniedError:
                if name == HF_CONFIG:
                    files.write(f"{root}/{name}", b"{}\n")
