"""Tiny configurations of every architecture, each with every feature of it switched on: keys of transformers' classes.

And the published numbers of parameters of all presets.
"""

from __future__ import annotations

from typing import Any

from tests.support.architectures import experts, gpt_like, llama_like, single_lineages

_MODULES = (llama_like, single_lineages, experts, gpt_like)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    name: keys for module in _MODULES for name, keys in module.ARCHITECTURES.items()
}
PARAMETERS: dict[str, int] = {name: count for module in _MODULES for name, count in module.PARAMETERS.items()}
# config.json of the models that presets are named after.
RELEASES: dict[str, dict[str, Any]] = {**single_lineages.RELEASES, **experts.RELEASES}
