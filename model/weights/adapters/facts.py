"""What an adapter holds: of a PEFT folder, and of a checkpoint that trained one. Light; reads headers only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from launchyard.model.adapt.targets import updates
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape, parameter_shapes
from launchyard.model.weights.adapters.peft_config import read_peft_config
from launchyard.model.weights.adapters.peft_keys import peft_keys, shapes_in
from launchyard.storage.shards import read_manifest


@dataclass(frozen=True)
class AdapterFacts:
    """`modules` have an update, of rank r and weight alpha unless they say otherwise; `whole`: stored as they are now.

    `tokens`: tables and heads of which some rows are stored.
    """

    place: str
    kind: str
    r: int
    alpha: float
    n_params: int
    modules: list[str]
    whole: list[str]
    tokens: list[str]


def peft_facts(folder: str, base: ModelConfig) -> AdapterFacts:
    """The facts of a PEFT folder over `base`, under the names of its file."""
    peft = read_peft_config(folder)
    shapes = shapes_in(folder)
    keys = peft_keys(base, peft, shapes)
    return AdapterFacts(
        place=folder,
        kind="dora" if peft.use_dora else "lora" if keys.updates else "tokens" if keys.tokens else "whole modules",
        r=peft.r,
        alpha=peft.lora_alpha,
        n_params=_count(shapes.values()),
        modules=list(keys.updates),
        whole=list(keys.whole),
        tokens=list(keys.tokens),
    )


def trained_facts(checkpoint: str) -> AdapterFacts | None:
    """The facts of a checkpoint's adapter, under our names; None if the run trained all that it has."""
    manifest = read_manifest(checkpoint)
    adapter = Adapter.model_validate(manifest.base.get("adapter", {}))
    if not manifest.frozen:
        return None
    plain = parameter_shapes(ModelConfig.model_validate(manifest.model))
    stored = {name.removeprefix("model."): one for name, one in manifest.tensors.items() if name.startswith("model.")}
    return AdapterFacts(
        place=checkpoint,
        kind=adapter.kind,
        r=adapter.r,
        alpha=adapter.alpha,
        n_params=_count(one.shape for one in stored.values()),
        modules=list(updates(plain, adapter)),
        whole=[name for name in plain if name in stored],
        tokens=[name.removesuffix(".tokens") for name in stored if name.endswith(".tokens")],
    )


def _count(shapes: Iterable[TensorShape]) -> int:
    return sum(map(math.prod, shapes))
