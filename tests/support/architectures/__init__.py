"""Tiny configurations of every architecture, each with every feature of it switched on: keys of transformers' classes.

And the published numbers of parameters of all presets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from launchyard.model import zoo
from tests.support.architectures import experts, gpt_like, llama_like, single_lineages

_MODULES = (llama_like, single_lineages, experts, gpt_like)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    name: keys for module in _MODULES for name, keys in module.ARCHITECTURES.items()
}
PARAMETERS: dict[str, int] = {name: count for module in _MODULES for name, count in module.PARAMETERS.items()}
# config.json of the models that presets are named after.
RELEASES: dict[str, dict[str, Any]] = {**single_lineages.RELEASES, **experts.RELEASES}


def _sample() -> tuple[str, ...]:
    """The first architecture of each file of the zoo."""
    first: dict[str, str] = {}
    for name, keys in ARCHITECTURES.items():
        first.setdefault(zoo.BY_TYPE[keys["model_type"]].read.__module__, name)
    return tuple(first.values())


SAMPLE = _sample()


def sampled(names: Iterable[str]) -> list[Any]:
    """Parameters of a test: those of the sample, and marked `families` all others."""
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.families) for name in names]


each_architecture = pytest.mark.parametrize("name", sampled(ARCHITECTURES))
