"""The updates of a PEFT folder as merges of our tensors, in fp32.

They are made in the layout of the base's files, as PEFT sees it, and brought into ours by the rules of the family; so
fused and transposed matrices, and heads in another order, need no case of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape, parameter_shapes
from launchyard.model.weights.adapters.peft_config import PeftConfig, read_peft_config
from launchyard.model.weights.adapters.peft_keys import BIN, SAFETENSORS, PeftKeys, peft_keys, shapes_in, untied_by
from launchyard.model.weights.stored.pickled import open_pickle
from launchyard.model.weights.stored.tensors import BinTensor, FileTensor, StoredTensor
from launchyard.model.weights.tie import table_keys
from launchyard.model.weights.transfer import Importer
from launchyard.model.zoo import rules
from launchyard.model.zoo.rules import Overlap, overlaps, their_shapes
from launchyard.model.zoo.views import View, whole
from launchyard.storage.files import exists
from launchyard.storage.safetensors import TensorFile


@dataclass(frozen=True)
class _Made:
    """A tensor in the layout of the base's files that is made when it is read; a Part of transfer.py."""

    make: Callable[[], Tensor]
    dtype: torch.dtype = torch.float32

    def read(self, views: Sequence[View]) -> Tensor:
        return self.make()

    def release(self) -> None:
        """Nothing is kept."""


@dataclass(frozen=True)
class _Tokens:
    """Rows that replace those of some tokens: read() is (ids, dim)."""

    ids: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class PeftMerge:
    """What becomes of one tensor of ours. Each gives rows of `key`; None where the adapter has nothing of that sort."""

    key: str
    delta: Importer | None
    whole: Importer | None
    magnitude: Importer | None  # of each row, in all of its columns; no number where a row has none
    tokens: _Tokens | None

    def rows(self, base: Tensor, rows: range) -> Tensor:
        """base (n, …): those rows of the tensor, in fp32 with their update."""
        made = base.float() if self.whole is None else self._read(self.whole, rows)
        if self.delta is not None:
            made = made + self._read(self.delta, rows)
        if self.magnitude is not None:
            gain = self._read(self.magnitude, rows)[..., :1] / torch.linalg.vector_norm(made, dim=-1, keepdim=True)
            made = torch.where(gain.isnan(), made, made * gain)
        if self.tokens is not None:
            mine = [number for number, token in enumerate(self.tokens.ids) if token in rows]
            places = torch.tensor([self.tokens.ids[number] - rows.start for number in mine], dtype=torch.int64)
            made = made.index_copy(0, places, self.tokens.read()[mine])
        return made

    def _read(self, importer: Importer, rows: range) -> Tensor:
        return next(importer.rows({self.key: rows}))[1]


def peft_merges(base: ModelConfig, folder: str) -> tuple[dict[str, PeftMerge], bool]:
    """Our key -> its merge, and whether a tied head is to be one of its own.

    ValueError names a tensor that the base has no place for, of another shape than its config or the base makes it, or
    a target of the config that the file has no tensors of.
    """
    peft = read_peft_config(folder)
    stored = open_peft(folder)
    keys = peft_keys(base, peft, stored)
    untied = untied_by(base, peft, keys)
    config = base.model_copy(update={"tie_embeddings": base.tie_embeddings and not untied})
    return _Reader(config, peft, stored, keys).merges(), untied


def open_peft(folder: str) -> dict[str, StoredTensor]:
    """Every tensor by its key in the file. FileNotFoundError without one; no code in a pickle is run."""
    names = shapes_in(folder)
    if exists(f"{folder}/{SAFETENSORS}"):
        file = TensorFile(f"{folder}/{SAFETENSORS}")
        return {name: FileTensor(file, name) for name in names}
    return {name: BinTensor(f"{folder}/{BIN}", tensor) for name, tensor in open_pickle(f"{folder}/{BIN}").items()}


class _Reader:
    def __init__(
        self, config: ModelConfig, peft: PeftConfig, stored: Mapping[str, StoredTensor], keys: PeftKeys
    ) -> None:
        family = rules(config)
        self._config = config
        self._peft = peft
        self._stored = stored
        self._keys = keys
        self._shapes = their_shapes(family, config)
        # Values of a replaced tensor are turned into ours (plus); a difference is the same on both sides.
        self._overlaps = overlaps(family, config)
        self._transposed = {
            overlap.theirs: overlap.theirs_view.strides[-1] != 1 and len(self._shapes[overlap.theirs]) == 2
            for overlap in self._overlaps
        }

    def merges(self) -> dict[str, PeftMerge]:
        self._check_targets()
        deltas: dict[str, _Made] = {}
        magnitudes: dict[str, _Made] = {}
        for module, parts in self._keys.updates.items():
            self._add_update(module, parts, deltas, magnitudes)
        wholes = {key: self._whole(key, name) for key, name in self._keys.whole.items()}
        made = self._importers(deltas, 0.0, complete=False)
        gains = self._importers(magnitudes, torch.nan, complete=False)
        replaced = self._importers(wholes, 0.0, complete=True)
        tokens = self._tokens()
        touched = {*made, *replaced, *gains, *tokens}
        return {
            key: PeftMerge(key, made.get(key), replaced.get(key), gains.get(key), tokens.get(key))
            for key in parameter_shapes(self._config)
            if key in touched
        }

    def _tokens(self) -> dict[str, _Tokens]:
        """By our key: a row of a table or head is that of its token in both layouts."""
        found: dict[str, _Tokens] = {}
        if not self._keys.tokens and not self._peft.trained_tokens:
            return found
        table, head = table_keys(self._config)
        for key, ours in ((table, "embed.weight"), (head, "lm_head.weight")):
            name = self._keys.tokens.get(key)
            if name is not None:
                module = key.removesuffix(".weight")
                if key in self._keys.whole or module in self._keys.updates:
                    raise ValueError(f"{self._peft.folder}: {module} has trained tokens and more; merge it with peft")
                found[ours] = self._rows_of_tokens(key, name, self._peft.tokens(module, is_table=key == table))
        if self._peft.trained_tokens and not found:
            raise ValueError(f"{self._peft.folder}: trainable_token_indices names tokens that its file has no rows of")
        return found

    def _rows_of_tokens(self, key: str, name: str, ids: tuple[int, ...]) -> _Tokens:
        rows, columns = self._shape(key, name)
        self._expect(name, (len(ids), columns))
        if outside := [token for token in ids if not 0 <= token < rows]:
            raise ValueError(
                f"{self._peft.folder}: trainable_token_indices goes to {outside[0]}, and {name} is over a base with "
                f"{rows} tokens"
            )
        return _Tokens(ids, lambda: self._read(name))

    def _add_update(
        self, module: str, parts: Mapping[str, str], deltas: dict[str, _Made], magnitudes: dict[str, _Made]
    ) -> None:
        key = f"{module}.weight"
        shape = self._shape(key, next(iter(parts.values())))
        scale = self._peft.scale(module)
        if "lora_embedding_A" in parts:
            self._check_shapes(module, parts, "lora_embedding_A", "lora_embedding_B", (shape[1], shape[0]))
        else:
            out, columns = reversed(shape) if self._transposed[key] else shape
            self._check_shapes(module, parts, "lora_A", "lora_B", (out, columns))
        deltas[key] = _Made(lambda: self._product(parts, scale, transposed=self._transposed[key]))
        if "lora_B.bias" in parts:
            name = parts["lora_B.bias"]
            self._expect(name, self._shape(f"{module}.bias", name))
            deltas[f"{module}.bias"] = _Made(lambda: self._read(name) * scale)
        if self._peft.use_dora != ("lora_magnitude_vector" in parts):
            there = "no" if self._peft.use_dora else "a"
            raise ValueError(
                f"{self._peft.folder}: use_dora is {self._peft.use_dora}, and {module} has {there} magnitude"
            )
        if self._peft.use_dora:
            magnitudes[key] = self._magnitude(module, parts, shape)

    def _magnitude(self, module: str, parts: Mapping[str, str], shape: TensorShape) -> _Made:
        name = parts["lora_magnitude_vector"]
        if "lora_embedding_A" in parts:
            raise ValueError(
                f"{self._peft.folder}: {name}: a table with magnitudes is not supported; merge it with peft"
            )
        transposed = self._transposed[f"{module}.weight"]
        rows = shape[1] if transposed else shape[0]
        if self._stored[name].shape not in ((rows,), (rows, 1), (1, rows)):
            raise ValueError(self._other_shape(name, (rows,)))
        across = (1, -1) if transposed else (-1, 1)
        return _Made(lambda: self._read(name).view(*across).expand(shape).contiguous())

    def _product(self, parts: Mapping[str, str], scale: float, *, transposed: bool) -> Tensor:
        if "lora_embedding_A" in parts:
            a, b = (self._read(parts[f"lora_embedding_{part}"]) for part in "AB")
            return (a.t() @ b.t()) * scale
        a, b = (self._read(parts[f"lora_{part}"]) for part in "AB")
        made = (b @ a) * scale
        return made.t().contiguous() if transposed else made

    def _whole(self, key: str, name: str) -> _Made:
        self._expect(name, self._shape(key, name))
        return _Made(lambda: self._read(name))

    def _read(self, name: str) -> Tensor:
        return self._stored[name].read([whole(self._stored[name].shape)]).float()

    def _importers(self, parts: dict[str, _Made], filler: float, *, complete: bool) -> dict[str, Importer]:
        """Our key -> the importer of its rows, of those that a part reaches; the rest of them is `filler`."""
        ours = {overlap.ours for overlap in self._overlaps if overlap.theirs in parts}
        needed = [overlap for overlap in self._overlaps if overlap.ours in ours]
        if complete and (lacking := [overlap for overlap in needed if overlap.theirs not in parts]):
            raise ValueError(f"{self._peft.folder} replaces a part of {lacking[0].ours} alone; merge it with peft")
        if not complete:
            needed = [replace(overlap, plus=0.0) for overlap in needed]
        stored = {overlap.theirs: parts.get(overlap.theirs) or self._filled(overlap, filler) for overlap in needed}
        importer = Importer(needed, parameter_shapes(self._config), stored)
        return dict.fromkeys(ours, importer)

    def _filled(self, overlap: Overlap, filler: float) -> _Made:
        shape = self._shapes[overlap.theirs]
        return _Made(lambda: torch.full(shape, filler))

    def _shape(self, key: str, name: str) -> TensorShape:
        shape = self._shapes.get(key)
        if shape is None:
            raise ValueError(
                f"{self._peft.folder}: {name} changes {key}, and the base, a {self._config.family} model with "
                f"{self._config.n_layers} layers, has none; name another base with --base"
            )
        return shape

    def _check_shapes(
        self, module: str, parts: Mapping[str, str], first: str, second: str, sizes: tuple[int, int]
    ) -> None:
        rank = self._peft.rank(module)
        for part, shape in ((first, (rank, sizes[1])), (second, (sizes[0], rank))):
            if part not in parts:
                raise ValueError(f"{self._peft.folder}: {module} has no {part}")
            self._expect(parts[part], shape)

    def _expect(self, name: str, shape: TensorShape) -> None:
        if self._stored[name].shape != shape:
            raise ValueError(self._other_shape(name, shape))

    def _other_shape(self, name: str, shape: TensorShape) -> str:
        found = list(self._stored[name].shape)
        return (
            f"{self._peft.folder}: {name} has shape {found}; the base and the adapter's config make it {list(shape)}. "
            "Is it over another base? --base names one"
        )

    def _check_targets(self) -> None:
        """A target without tensors would be an update that is lost."""
        if self._peft.target_modules == "all-linear":
            return
        modules = {key.removesuffix(".weight") for key, shape in self._shapes.items() if len(shape) == 2}
        wanted = sorted(module for module in modules if ".experts." not in module and self._peft.targets(module))
        if lacking := [module for module in wanted if module not in self._keys.updates]:
            raise ValueError(
                f"{self._peft.folder}: target_modules names {lacking[0]}, of which its file has no tensors "
                f"({len(lacking)} such modules)"
            )
