"""Writes weights as a Hugging Face folder: safetensors, config.json, tokenizer; by the rules that hf.py reads by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes, stays_fp32
from launchyard.model.text.tokenizer import save_tokenizer, special_ids
from launchyard.model.weights.hf import INDEX, SINGLE
from launchyard.model.weights.source import HF_CONFIG
from launchyard.model.weights.transfer import to_theirs
from launchyard.model.zoo import config_to_hf, rules
from launchyard.model.zoo.rules import overlaps, their_shapes
from launchyard.storage import files
from launchyard.storage.errors import DeniedError
from launchyard.storage.files import listdir, normal
from launchyard.storage.safetensors import write_tensors

MAX_FILE_BYTES = 5_000_000_000


def save_hf(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    folder: str,
    *,
    tokenizer_file: str | None = None,
    max_file_bytes: int = MAX_FILE_BYTES,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a folder that transformers opens: tensors by our names, in any order, each once, into safetensors files.

    Holds about one file in memory. `folder` is local or any fsspec URL; a model that lies there is replaced.
    config.json is written last, so that a folder that has one is whole. ValueError if a parameter is missing, unknown
    or of another shape, or if the family's format has no place for one of the config's knobs.
    """
    hf = config_to_hf(config)
    root = normal(folder)
    _remove_old(root)
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    writer = _Writer(root, max_file_bytes)
    for key, tensor in _joined(items, config, dtype):
        writer.add(key, tensor)
    stored = writer.finish()
    if tokenizer_file is not None:
        save_tokenizer(tokenizer_file, root, max_seq_len=config.max_seq_len)
        hf |= special_ids(tokenizer_file)
    hf["torch_dtype"] = str(stored).removeprefix("torch.")
    files.write(f"{root}/{HF_CONFIG}", (json.dumps(hf, indent=2) + "\n").encode())


class _Writer:
    """Fills one safetensors file after the other. Their number is known only at the end, so they are named then."""

    def __init__(self, root: str, max_file_bytes: int) -> None:
        self._root = root
        self._max = max_file_bytes
        self._open: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        self._written: list[list[str]] = []
        self._dtype: torch.dtype | None = None

    def add(self, key: str, tensor: Tensor) -> None:
        if self._open and self._bytes + tensor.nbytes > self._max:
            self._flush()
        self._open[key] = tensor
        self._bytes += tensor.nbytes
        self._dtype = self._dtype or tensor.dtype

    def finish(self) -> torch.dtype | None:
        """Name the files, write the index if there are several. Returns the element type of the first tensor."""
        self._flush()
        count = len(self._written)
        names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)] if count > 1 else [SINGLE]
        for number, name in enumerate(names):
            files.rename(self._temporary(number), f"{self._root}/{name}")
        if count > 1:
            weight_map = {key: name for name, keys in zip(names, self._written, strict=True) for key in keys}
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
            files.write(f"{self._root}/{INDEX}", (json.dumps(index, indent=2) + "\n").encode())
        elif files.exists(f"{self._root}/{INDEX}"):  # one that could not be removed: loaders would follow it
            files.remove(f"{self._root}/{INDEX}")
        return self._dtype

    def _flush(self) -> None:
        file = files.open_write(self._temporary(len(self._written)), size=self._bytes)
        try:
            write_tensors(file, self._open)
            file.close()
        except BaseException:
            file.discard()
            raise
        self._written.append(list(self._open))
        self._total += self._bytes
        self._open = {}
        self._bytes = 0

    def _temporary(self, number: int) -> str:
        return f"{self._root}/model-{number + 1:05d}.part"


def _joined(
    items: Iterable[tuple[str, Tensor]], config: ModelConfig, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Their keys and tensors on the CPU, each as soon as all of its parts have come. `dtype`: default: theirs."""
    family = rules(config)
    all_pieces = overlaps(family, config)
    fp32 = {overlap.theirs for overlap in all_pieces if stays_fp32(overlap.ours)}
    for key, tensor in to_theirs(all_pieces, their_shapes(family, config), _checked(items, config)):
        yield key, tensor.detach().to(device="cpu", dtype=torch.float32 if key in fp32 else dtype)


def _checked(items: Iterable[tuple[str, Tensor]], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Our parameters, each once; ValueError if one is missing, unknown or of another shape."""
    shapes = parameter_shapes(config)
    missing = set(shapes)
    for name, tensor in items:
        if config.tie_embeddings and name == "lm_head.weight":
            continue  # written once, as the table
        if name not in missing:
            raise ValueError(f"{name} is {'given twice' if name in shapes else 'no parameter of this model'}")
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; the config makes it {list(shapes[name])}")
        missing.remove(name)
        yield name, tensor
    if missing:
        raise ValueError(f"{len(missing)} parameters are missing, among them {', '.join(sorted(missing)[:5])}")


def _remove_old(root: str) -> None:
    """config.json first: from then on there is no model here until the new one is whole.

    Where a store lets nobody delete, it is emptied, which no loader takes for a model; other files wait to be replaced.
    """
    for name in sorted(listdir(root), key=lambda name: name != HF_CONFIG):
        if name in (HF_CONFIG, INDEX) or (name.startswith("model") and name.endswith((".safetensors", ".part"))):
            try:
                files.remove(f"{root}/{name}")
            except DeniedError:
                if name == HF_CONFIG:
                    files.write(f"{root}/{name}", b"{}\n")
