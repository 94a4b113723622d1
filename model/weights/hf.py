"""The weights of a Hugging Face folder, by the rules of its family; hf_export.py writes one.

Strict on keys and shapes. Pickle files are refused: opening one can run code.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor

from launchyard.model.layout import parameter_shapes
from launchyard.model.weights.source import HF_CONFIG, read_hf_config
from launchyard.model.weights.transfer import to_ours
from launchyard.model.zoo import config_from_hf, is_of_images, rules
from launchyard.model.zoo.rules import Overlap, check_keys, overlaps, rule_keys, their_shapes
from launchyard.model.zoo.text_part import text_keys
from launchyard.storage import files
from launchyard.storage.errors import CorruptError
from launchyard.storage.files import exists, listdir, normal
from launchyard.storage.safetensors import TensorFile, torch_dtype

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HFWeights:
    """The weights of a folder, local or any fsspec URL, by our names. Nothing is read before it is asked for.

    ValueError if the keys or shapes are not those of the config; CorruptError names a damaged file.
    """

    def __init__(self, folder: str) -> None:
        self.folder = normal(folder)
        hf = read_hf_config(self.folder)
        self.config = config_from_hf(hf)
        family = rules(self.config)
        self._overlaps: dict[str, list[Overlap]] = {}
        for overlap in overlaps(family, self.config):
            self._overlaps.setdefault(overlap.ours, []).append(overlap)
        self._shapes = parameter_shapes(self.config)
        opened = _open_files(self.folder)
        names = text_keys(opened) if is_of_images(hf) else {key: key for key in opened}
        self._files = {key: (opened[names[name]], names[name]) for key, name in rule_keys(family, names).items()}
        check_keys(family, self.config, self._files, where=self.folder)
        for key, shape in their_shapes(family, self.config).items():
            file, name = self._files[key]
            found = file.entries[name].shape
            if found != shape:
                raise ValueError(f"{self.folder}: {name} has shape {list(found)}; config.json makes it {list(shape)}")
        self._newest: tuple[str, Tensor] | None = None

    def keys(self) -> list[str]:
        return list(self._shapes)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> torch.dtype:
        """Of what `get` returns. Reads no tensor."""
        file, name = self._files[self._overlaps[key][0].theirs]
        return torch_dtype(file.entries[name].dtype)

    def get(self, key: str) -> Tensor:
        """A whole tensor on the CPU in the type it is stored in; a local one is a view of the mapped file."""
        return to_ours(self._overlaps[key], self._shapes[key], self._read)

    def _read(self, key: str) -> Tensor:
        if self._newest is None or self._newest[0] != key:  # q, k and v are asked for one after the other
            file, name = self._files[key]
            self._newest = key, file.get(name)
        return self._newest[1]


def _open_files(folder: str) -> dict[str, TensorFile]:
    """Their key -> the file that holds it."""
    if exists(f"{folder}/{INDEX}"):
        return _open_indexed(folder)
    if exists(f"{folder}/{SINGLE}"):
        file = TensorFile(f"{folder}/{SINGLE}")
        return dict.fromkeys(file.entries, file)
    pickles = sorted(name for name in listdir(folder) if name.endswith(PICKLES))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights only as pickle ({', '.join(pickles[:3])}). Opening one can run any code, "
            "so it is not read; save the model again with transformers' save_pretrained(safe_serialization=True)"
        )
    raise FileNotFoundError(f"{folder} has a {HF_CONFIG} but no weights: looked for {SINGLE} and {INDEX}")


def _open_indexed(folder: str) -> dict[str, TensorFile]:
    path = f"{folder}/{INDEX}"
    try:
        weight_map = dict(json.loads(files.read(path))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is no readable index: {error}") from error
    opened = {}
    for name in sorted(set(weight_map.values())):
        if "/" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{path} names {name!r}; only safetensors files beside it are read")
        try:
            opened[name] = TensorFile(f"{folder}/{name}")
        except FileNotFoundError as error:
            raise CorruptError(f"{folder}/{name} is missing; {INDEX} names it") from error
    for key, name in weight_map.items():
        if key not in opened[name].entries:
            raise CorruptError(f"{folder}/{name} does not hold {key}, as {INDEX} says")
    return {key: opened[name] for key, name in weight_map.items()}
