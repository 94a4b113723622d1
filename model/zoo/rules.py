"""Rules that map a family's keys to ours, as data that is read in both directions. Light; touches no tensor.

A key holds `{i}` where the number of the layer stands. A rule counts only where the config has the parameter it names,
so that one list serves configs with and without biases.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape, parameter_shapes


@dataclass(frozen=True)
class Rename:
    """One of theirs is one of ours."""

    theirs: str
    ours: str


@dataclass(frozen=True)
class Fused:
    """One of theirs holds several of ours, their rows interleaved head by head: (n_heads, parts, head_dim, …)."""

    theirs: str
    ours: tuple[str, ...]


@dataclass(frozen=True)
class Drop:
    """One of theirs is no parameter: a table or a mask that follows from the config."""

    theirs: str


Rule = Rename | Fused | Drop


@dataclass(frozen=True)
class TensorLocation:
    """The location of one of our parameters in their files: part `part` of `parts` of the tensor `key`."""

    key: str
    part: int = 0
    parts: int = 1


def tensor_locations(rules: tuple[Rule, ...], config: ModelConfig) -> dict[str, TensorLocation]:
    """Our name -> its location among theirs, for every parameter of the config."""
    shapes = parameter_shapes(config)
    found = {ours: location for ours, location in _all_locations(rules, config) if ours in shapes}
    assert found.keys() == shapes.keys(), f"no rule for {sorted(shapes.keys() - found.keys())}"
    return found


def their_shapes(rules: tuple[Rule, ...], config: ModelConfig) -> dict[str, TensorShape]:
    """Their key -> its whole shape."""
    shapes = parameter_shapes(config)
    return {
        location.key: (shapes[ours][0] * location.parts, *shapes[ours][1:])
        for ours, location in tensor_locations(rules, config).items()
    }


def check_keys(rules: tuple[Rule, ...], config: ModelConfig, keys: Iterable[str], *, where: str) -> None:
    """ValueError that names the keys which are missing or which no rule knows."""
    present = set(keys)
    expected = {location.key for location in tensor_locations(rules, config).values()}
    droppable = [_pattern(rule.theirs) for rule in rules if isinstance(rule, Drop)]
    if config.tie_embeddings:  # many tied models carry a copy of the table as their head
        droppable += [_pattern(rule.theirs) for rule in rules if isinstance(rule, Rename) and _is_head(rule)]
    unmatched = {key for key in present - expected if not any(pattern.fullmatch(key) for pattern in droppable)}
    problems = []
    if missing := expected - present:
        problems.append(f"missing {_some(missing)}")
    if unmatched:
        problems.append(f"unknown {_some(unmatched)}")
    if problems:
        raise ValueError(
            f"{where}: the tensors do not fit a {config.family} model with {config.n_layers} layers: "
            f"{'; '.join(problems)}. Is config.json that of these files?"
        )


def _all_locations(rules: tuple[Rule, ...], config: ModelConfig) -> Iterator[tuple[str, TensorLocation]]:
    for rule in rules:
        if isinstance(rule, Drop):
            continue
        ours = (rule.ours,) if isinstance(rule, Rename) else rule.ours
        for layer in range(config.n_layers) if "{i}" in rule.theirs else (0,):
            key = rule.theirs.replace("{i}", str(layer))
            for part, name in enumerate(ours):
                yield name.replace("{i}", str(layer)), TensorLocation(key, part, len(ours))


def _is_head(rule: Rename) -> bool:
    return rule.ours == "lm_head.weight"


def _pattern(theirs: str) -> re.Pattern[str]:
    return re.compile(re.escape(theirs).replace(r"\{i\}", r"\d+"))


def _some(keys: set[str], limit: int = 5) -> str:
    listed = ", ".join(sorted(keys)[:limit])
    return listed if len(keys) <= limit else f"{listed} and {len(keys) - limit} more"
