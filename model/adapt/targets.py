"""Which projections an adapter changes, with updates of which rank and weight. Light; reads names and shapes only."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launchyard.model.adapter import LOW_RANK, PROMPTED, Adapter

ALL_LINEAR = "all-linear"
# LitGPT's six switches, and what the usual checkpoints call the same projections.
ALIASES: dict[str, tuple[str, ...]] = {
    "query": ("q_proj",),
    "key": ("k_proj",),
    "value": ("v_proj",),
    "projection": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "head": ("lm_head",),
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "Wqkv": ("q_proj", "k_proj", "v_proj"),
    "c_attn": ("q_proj", "k_proj", "v_proj"),
    "dense_h_to_4h": ("up_proj",),
    "dense_4h_to_h": ("down_proj",),
    "c_fc": ("up_proj",),
    "fc1": ("up_proj",),
    "fc2": ("down_proj",),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "out_proj": ("o_proj",),
    "embed_tokens": ("embed",),
    "embed_in": ("embed",),
    "embed_out": ("lm_head",),
    "wte": ("embed",),
}


@dataclass(frozen=True)
class Update:
    """scale * B A of one projection; A is (rank, in), B is (out, rank)."""

    rank: int
    scale: float


def updates(shapes: Mapping[str, tuple[int, ...]], adapter: Adapter) -> dict[str, Update]:
    """Projection -> its update, in forward order; empty unless the kind is low-rank.

    shapes: of all parameters of the model. ValueError for a target, rank or layer that no projection matches.
    """
    if adapter.kind not in LOW_RANK:
        return {}
    chosen = targets(shapes, adapter)
    for key, patterns in (("ranks", adapter.ranks), ("alphas", adapter.alphas)):
        for pattern in patterns:
            if not any(_ends(name, pattern) for name in chosen):
                raise ValueError(f"adapter.{key}: {pattern} matches none of the targets{_near(pattern, chosen)}")
    return {name: _update(name, adapter) for name in chosen}


def scaled(shapes: Mapping[str, tuple[int, ...]], adapter: Adapter) -> list[str]:
    """Projections with a scale and a bias of their own, in forward order; none unless the kind has them."""
    if adapter.kind != "llama-adapter-v2":
        return []
    found = targets(shapes, adapter)
    if "embed" in found:
        raise ValueError("adapter.targets: a table has no scales; leave embed out, or use kind lora")
    return found


def prompted(n_layers: int, adapter: Adapter) -> range:
    """The layers that have a prompt. ValueError if more are asked for than there are."""
    if adapter.kind not in PROMPTED:
        return range(0)
    count = max(1, n_layers - 2) if adapter.prompt_layers is None else adapter.prompt_layers
    if count > n_layers:
        raise ValueError(f"adapter.prompt_layers: {count}, and the model has {n_layers}")
    return range(n_layers - count, n_layers)


def targets(shapes: Mapping[str, tuple[int, ...]], adapter: Adapter) -> list[str]:
    """The projections that `targets`, `exclude` and `layers` leave, in forward order; ValueError if none."""
    linear = [name.removesuffix(".weight") for name, shape in shapes.items() if _is_projection(name, shape)]
    if "lm_head" not in linear:
        linear.append("lm_head")  # a tied one can have an update of its own
    chosen = _chosen(linear, adapter.targets, "adapter.targets")
    if adapter.exclude:
        chosen = chosen - _chosen(linear, adapter.exclude, "adapter.exclude")
    if adapter.layers is not None:
        chosen = _in_layers(chosen, adapter.layers)
    if not chosen:
        raise ValueError("adapter.targets: no projection is left; exclude and layers leave none")
    return [name for name in linear if name in chosen]


def _is_projection(name: str, shape: tuple[int, ...]) -> bool:
    if not name.endswith(".weight") or len(shape) != 2 or name == "positions.weight":
        return False
    return not name.split(".")[-2].endswith("norm")


def _chosen(linear: list[str], given: str | Iterable[str], key: str) -> set[str]:
    if given == ALL_LINEAR:
        return {name for name in linear if name.endswith("_proj")}
    if isinstance(given, str):
        pattern = _compiled(given, key)
        found = {name for name in linear if pattern.fullmatch(name)}
        if not found and given not in ALIASES and not re.search(r"[\\*+?(\[|^$]", given):
            found = _named(linear, given)
        found = found or (_named(linear, given) if given in ALIASES else set())
        if not found:
            raise ValueError(f"{key}: {given} matches no projection of this model{_near(given, linear)}")
        return found
    chosen: set[str] = set()
    for name in given:
        found = _named(linear, name)
        if not found:
            raise ValueError(f"{key}: this model has no projection {name}{_near(name, linear)}")
        chosen |= found
    return chosen


def _named(linear: list[str], name: str) -> set[str]:
    exact = {path for path in linear if path == name or path.endswith(f".{name}")}
    return exact or {path for ours in ALIASES.get(name, ()) for path in linear if path.rpartition(".")[2] == ours}


def _in_layers(chosen: set[str], layers: Iterable[int]) -> set[str]:
    there = {int(name.split(".")[1]) for name in chosen if name.startswith("blocks.")}
    if missing := sorted(set(layers) - there):
        raise ValueError(
            f"adapter.layers: no target lies in block {missing[0]}; some do in {min(there)} to {max(there)}"
        )
    return {name for name in chosen if name.startswith("blocks.") and int(name.split(".")[1]) in set(layers)}


def _update(name: str, adapter: Adapter) -> Update:
    rank = next((rank for pattern, rank in adapter.ranks.items() if _ends(name, pattern)), adapter.r)
    alpha = next((alpha for pattern, alpha in adapter.alphas.items() if _ends(name, pattern)), adapter.alpha)
    factor = {"alpha/r": 1 / rank, "alpha/sqrt(r)": 1 / math.sqrt(rank), "alpha": 1.0}[adapter.scaling]
    return Update(rank, alpha * factor)


def _ends(name: str, pattern: str) -> bool:
    """As PEFT has it: the pattern is the whole name, or its end behind a dot."""
    return _compiled(rf"(.*\.)?({pattern})", "adapter.ranks").fullmatch(name) is not None


def _compiled(pattern: str, key: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}: {pattern} is no regular expression: {error}") from error


def _near(name: str, known: Iterable[str]) -> str:
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in known))
    close = difflib.get_close_matches(name.rpartition(".")[2], names, n=3, cutoff=0.4) or names[:8]
    return f"; there are {', '.join(close)}"
