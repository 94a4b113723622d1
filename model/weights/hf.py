"""The weights of a Hugging Face folder, by the rules of its family; hf_export.py writes one.

Strict on keys and shapes. No code in a pickle is ever run.
"""

from __future__ import annotations

import logging

import torch

from launchyard.model.layout import TensorShape, parameter_shapes
from launchyard.model.weights.source import HF_CONFIG, read_hf_config
from launchyard.model.weights.stored.quantised import dequantise
from launchyard.model.weights.stored.tensors import StoredTensor, open_stored
from launchyard.model.weights.tie import settled, with_table
from launchyard.model.weights.transfer import ImportedWeights, Importer
from launchyard.model.zoo import config_from_hf, is_of_images, rules
from launchyard.model.zoo.rules import check_keys, overlaps, rule_keys, their_shapes
from launchyard.model.zoo.text_part import text_keys
from launchyard.storage.files import is_remote, normal

_LOG = logging.getLogger(__name__)
IMPORT_THREADS = 8  # threads that read from a store
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class HFWeights(ImportedWeights):
    """The weights of a folder, local or any fsspec URL: `get` gives a local one as a view of the mapped file.

    ValueError if the keys or shapes are not those of the config; CorruptError names a damaged file.
    """

    def __init__(self, folder: str, *, dequantised: torch.dtype = torch.bfloat16) -> None:
        """`dequantised`: the type of quantised weights, which are given by their values."""
        self.folder = normal(folder)
        hf = read_hf_config(self.folder)
        said = config_from_hf(hf)
        self.config = settled(said, hf, self.folder)
        if self.config != said:
            _LOG.warning(
                "%s: %s ties head and table, but the files hold two that differ; both are kept", folder, HF_CONFIG
            )
        family = rules(self.config)
        opened = open_stored(self.folder)
        if hf.get("quantization_config"):
            opened = dequantise(opened, hf["quantization_config"], dequantised)
        names = text_keys(opened) if is_of_images(hf) else {key: key for key in opened}
        found = {key: (names[name], opened[names[name]]) for key, name in rule_keys(family, names).items()}
        stored = with_table(self.config, found)
        check_keys(family, self.config, stored, where=self.folder)
        for key, shape in their_shapes(family, self.config).items():
            _check_tensor(*stored[key], shape)
        tensors = {key: tensor for key, (_, tensor) in stored.items()}
        threads = IMPORT_THREADS if is_remote(self.folder) else 0
        super().__init__(
            Importer(overlaps(family, self.config), parameter_shapes(self.config), tensors, threads=threads)
        )


def _check_tensor(name: str, stored: StoredTensor, shape: TensorShape) -> None:
    if stored.shape != shape:
        raise ValueError(f"{stored.path}: {name} has shape {list(stored.shape)}; config.json makes it {list(shape)}")
    if stored.dtype not in WEIGHT_DTYPES:
        raise ValueError(
            f"{stored.path}: {name} is of {str(stored.dtype).removeprefix('torch.')}, and config.json says nothing of "
            "quantised weights; its quantization_config is missing"
        )
