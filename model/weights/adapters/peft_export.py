"""Writes the adapter of a run as a PEFT folder. Projections that files hold fused have one update."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from launchyard.model.adapt.targets import Update, updates
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import adapter_shapes, parameter_shapes, parameters
from launchyard.model.weights.adapters.peft_config import ADAPTER_CONFIG
from launchyard.model.weights.adapters.peft_keys import PEFT_PREFIX, SAFETENSORS
from launchyard.model.weights.source import read_config
from launchyard.model.weights.theirs import made_of
from launchyard.model.weights.tie import table_keys
from launchyard.model.zoo import rules
from launchyard.model.zoo.rules import Overlap, overlaps, their_shapes
from launchyard.storage import files

_BIAS = ".bias"


class AdaptedRun(Protocol):
    """A base with what was trained of it; see CheckpointWeights of model/weights/load.py."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def adapter(self) -> Adapter: ...

    @property
    def form(self) -> str | None: ...

    @property
    def init_from(self) -> str | None: ...

    def added(self, name: str) -> Tensor: ...

    def get(self, key: str) -> Tensor: ...


@dataclass(frozen=True)
class _Module:
    """The update of one of their modules. scale: the factor of B A."""

    tensors: dict[str, Tensor]
    rank: int
    scale: float
    transposed: bool


@dataclass(frozen=True)
class _Whole:
    """What trained without an update: tensors by their keys, the modules that are saved whole, and PEFT's `bias`."""

    tensors: dict[str, Tensor]
    modules: list[str]
    bias: str


@dataclass(frozen=True)
class SavedAdapter:
    """What was written. n_params: elements of its tensors; notes: what a reader must know."""

    n_params: int
    notes: list[str]


def save_peft(weights: AdaptedRun, folder: str) -> SavedAdapter:
    """ValueError for a parameter that trained and has no place in the format."""
    from safetensors.torch import save

    writer = _Writer(weights)
    modules = {name: writer.module(name) for name in writer.modules}
    whole = writer.whole()
    if not modules:
        raise ValueError("--to peft is for low-rank updates, and this run has none")
    tokens = writer.tokens()
    tensors = {
        f"{PEFT_PREFIX}{name}.{part}": held for name, module in modules.items() for part, held in module.tensors.items()
    }
    tensors |= {f"{PEFT_PREFIX}{name}": tensor for name, tensor in whole.tensors.items()}
    tensors |= {f"{PEFT_PREFIX}{name}.token_adapter.trainable_tokens_delta": rows for name, rows in tokens.items()}
    said = _config(weights, modules, whole)
    if tokens:
        said["trainable_token_indices"] = {name.rpartition(".")[2]: list(weights.adapter.tokens) for name in tokens}
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"})
    files.write(f"{folder}/{SAFETENSORS}", data)
    files.write(f"{folder}/{ADAPTER_CONFIG}", (json.dumps(said, indent=2) + "\n").encode())
    return SavedAdapter(sum(tensor.numel() for tensor in tensors.values()), _notes(weights, said))


class _Writer:
    def __init__(self, weights: AdaptedRun) -> None:
        self._weights = weights
        adapter = weights.adapter
        config = weights.config
        self._updates = updates(parameter_shapes(config), adapter)
        if config.tie_embeddings and "lm_head" in self._updates:
            config = config.model_copy(update={"tie_embeddings": False})
        self._config: ModelConfig = config
        self._shapes = their_shapes(rules(config), config)
        self._parts: dict[str, list[Overlap]] = {}
        for overlap in overlaps(rules(config), config):
            self._parts.setdefault(overlap.theirs, []).append(overlap)
        self.modules = [
            key.removesuffix(".weight")
            for key, parts in self._parts.items()
            if any(part.ours.removesuffix(".weight") in self._updates for part in parts)
        ]

    def module(self, name: str) -> _Module:
        key = f"{name}.weight"
        ours = list(dict.fromkeys(part.ours.removesuffix(".weight") for part in self._parts[key]))
        if ours == ["embed"]:
            update = self._updates["embed"]
            made = {"lora_embedding_A": self._added("embed.lora_a"), "lora_embedding_B": self._added("embed.lora_b")}
            return _Module(made, update.rank, update.scale, transposed=False)
        adapted = {one: self._updates[one] for one in ours if one in self._updates}
        scale = next(iter(adapted.values())).scale
        transposed = self._parts[key][0].theirs_view.strides[-1] != 1
        order = self._order(key, ours, transposed=transposed)
        made = {
            "lora_A.weight": torch.cat([self._added(f"{one}.lora_a") for one in adapted]),
            "lora_B.weight": self._b(ours, adapted, scale)[order],
        }
        if self._weights.adapter.kind == "dora":
            made["lora_magnitude_vector"] = torch.cat([self._magnitude(one) for one in ours])[order]
        return _Module(made, sum(update.rank for update in adapted.values()), scale, transposed)

    def whole(self) -> _Whole:
        """ValueError for what trained whole and has no place beside an update."""
        trained = self._trained_keys()
        saved = {key.rpartition(".")[0] for key in trained if not key.endswith(_BIAS)}
        biases = [key for key in trained if key.endswith(_BIAS) and key.removesuffix(_BIAS) not in saved]
        every = [key for key in self._parts if key.endswith(_BIAS)]
        of_updated = [key for key in every if key.removesuffix(_BIAS) in self.modules]
        bias = "none"
        if biases == every != []:
            bias = "all"
        elif of_updated and set(of_updated) <= set(biases):
            bias = "lora_only"
        if bias != "all":  # a module that has no update is saved with all that it has
            saved |= {key.removesuffix(_BIAS) for key in biases if bias == "none" or key not in of_updated}
            biases = of_updated if bias == "lora_only" else []
        if beside := sorted(saved & set(self.modules)):
            raise ValueError(f"a part of {beside[0]} trained whole beside its update, as PEFT cannot; export --to hf")
        tensors = {key: self._theirs(key) for key in self._parts if key.rpartition(".")[0] in saved}
        for key in biases:
            module = key.removesuffix(_BIAS)
            tensors[f"{module}.base_layer{_BIAS}" if module in self.modules else key] = self._theirs(key)
        return _Whole(tensors, sorted(saved), bias)

    def _trained_keys(self) -> list[str]:
        """Of their tensors that trained whole, or in a part."""
        adapter = self._weights.adapter
        added = adapter_shapes(self._weights.config, adapter)
        trained = {name for name, one in parameters(self._weights.config, adapter).items() if one.trained} - set(added)
        return [key for key, parts in self._parts.items() if any(part.ours in trained for part in parts)]

    def _theirs(self, key: str) -> Tensor:
        return made_of(self._parts[key], self._shapes[key], torch.float32, self._float)

    def tokens(self) -> dict[str, Tensor]:
        """The rows of trained tokens of their table, and of a head of its own."""
        ids = list(self._weights.adapter.tokens)
        found: dict[str, Tensor] = {}
        for key, ours in zip(table_keys(self._config), ("embed", "lm_head"), strict=True) if ids else ():
            if ours == "embed" or not self._config.tie_embeddings:
                rows = self._float(f"{ours}.weight")[ids] + self._added(f"{ours}.tokens")
                found[key.removesuffix(".weight")] = rows
        return found

    def _b(self, ours: list[str], adapted: Mapping[str, Update], scale: float) -> Tensor:
        """(rows of all, ranks of all): each has its own columns, of one scale."""
        blocks: list[Tensor] = []
        for one in ours:
            update = adapted.get(one)
            if update is None:
                blocks.append(torch.zeros(self._rows(one), 0))
            else:
                blocks.append(self._added(f"{one}.lora_b") * (update.scale / scale))
        return torch.block_diag(*blocks)

    def _order(self, key: str, ours: list[str], *, transposed: bool) -> Tensor:
        """For each row of theirs the row among those of ours, one after the other."""
        firsts = dict(zip(ours, torch.tensor([0, *map(self._rows, ours)]).cumsum(0).tolist(), strict=False))

        def numbers(name: str) -> Tensor:
            rows, columns = self._matrix(name)
            first = firsts[name.removesuffix(".weight")]
            return torch.arange(first, first + rows)[:, None].expand(rows, columns).contiguous()

        made = made_of(self._parts[key], self._shapes[key], torch.int64, numbers)
        return made[0] if transposed else made[:, 0]

    def _magnitude(self, name: str) -> Tensor:
        if name in self._updates:
            return self._added(f"{name}.magnitude")
        return torch.linalg.vector_norm(self._float(f"{name}.weight"), dim=1)

    def _rows(self, name: str) -> int:
        return self._matrix(f"{name}.weight")[0]

    def _matrix(self, name: str) -> tuple[int, int]:
        rows, columns = parameter_shapes(self._config)[name]
        return rows, columns

    def _added(self, name: str) -> Tensor:
        return self._weights.added(name).float()

    def _float(self, name: str) -> Tensor:
        return self._weights.get(name).float().contiguous()


def _config(weights: AdaptedRun, modules: Mapping[str, _Module], whole: _Whole) -> dict[str, object]:
    alphas = {name: module.scale * module.rank for name, module in modules.items()}
    rank = Counter(module.rank for module in modules.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": weights.init_from,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": weights.adapter.dropout,
        "rank_pattern": {name: module.rank for name, module in modules.items() if module.rank != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "target_modules": list(modules),
        "modules_to_save": whole.modules or None,
        "fan_in_fan_out": any(module.transposed for module in modules.values()),
        "use_dora": weights.adapter.kind == "dora",
        "use_rslora": False,
        "bias": whole.bias,
    }


def _notes(weights: AdaptedRun, said: Mapping[str, object]) -> list[str]:
    notes = []
    if weights.form is not None:
        notes.append(f"it was trained over a base in {weights.form}: over a plain one its numbers differ a little")
    if said["base_model_name_or_path"] is None:
        notes.append("the run began with random weights, so the adapter names no base")
    if said["modules_to_save"] or said["use_dora"]:
        notes.append("some servers take plain LoRA alone; `launch merge` writes a model that all of them take")
    if weights.init_from and (said["modules_to_save"] or weights.adapter.tokens):
        there = read_config(weights.init_from).padded_vocab_size
        rows = weights.config.padded_vocab_size
        if rows != there:
            resize = f"peft needs base.resize_token_embeddings({rows}) first"
            notes.append(f"the run's table has {rows} rows, that of the base {there}: {resize}, or take `launch merge`")
    return notes
