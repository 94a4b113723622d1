"""The weights of a Hugging Face folder, by the rules of its family; hf_export.py writes one.

Strict on keys and shapes. Pickle files are refused: opening one can run code.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from launchyard.model.layout import parameter_shapes
from launchyard.model.weights.headers import INDEX, SINGLE, open_headers
from launchyard.model.weights.source import HF_CONFIG, read_hf_config
from launchyard.model.weights.tie import settled, with_table
from launchyard.model.weights.transfer import to_ours
from launchyard.model.zoo import config_from_hf, is_of_images, rules
from launchyard.model.zoo.rules import Overlap, check_keys, overlaps, rule_keys, their_shapes
from launchyard.model.zoo.text_part import text_keys
from launchyard.storage.files import listdir, normal
from launchyard.storage.safetensors import TensorFile, torch_dtype

_LOG = logging.getLogger(__name__)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class HFWeights:
    """The weights of a folder, local or any fsspec URL, by our names. Nothing is read before it is asked for.

    ValueError if the keys or shapes are not those of the config; CorruptError names a damaged file.
    """

    def __init__(self, folder: str) -> None:
        self.folder = normal(folder)
        hf = read_hf_config(self.folder)
        said = config_from_hf(hf)
        self.config = settled(said, hf, self.folder)
        if self.config != said:
            _LOG.warning(
                "%s: %s ties head and table, but the files hold two that differ; both are kept", folder, HF_CONFIG
            )
        family = rules(self.config)
        self._overlaps: dict[str, list[Overlap]] = {}
        for overlap in overlaps(family, self.config):
            self._overlaps.setdefault(overlap.ours, []).append(overlap)
        self._shapes = parameter_shapes(self.config)
        opened = _open_files(self.folder)
        names = text_keys(opened) if is_of_images(hf) else {key: key for key in opened}
        stored = {key: (opened[names[name]], names[name]) for key, name in rule_keys(family, names).items()}
        self._files = with_table(self.config, stored)
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
    if opened := open_headers(folder):
        return opened
    pickles = sorted(name for name in listdir(folder) if name.endswith(PICKLES))
    if pickles:
        raise ValueError(
            f"{folder} holds its weights only as pickle ({', '.join(pickles[:3])}). Opening one can run any code, "
            "so it is not read; save the model again with transformers' save_pretrained(safe_serialization=True)"
        )
    raise FileNotFoundError(f"{folder} has a {HF_CONFIG} but no weights: looked for {SINGLE} and {INDEX}")
