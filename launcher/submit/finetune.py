"""From a model, rows and a method to the recipe that finetunes: the bundled one and what changes in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from launchyard.storage.damage import JsonObject

FINETUNE_RECIPE = "finetune/lora"
# What each method changes in that recipe.
METHODS: dict[str, JsonObject] = {
    "lora": {},
    "qlora": {"name": "qlora", "adapter.kind": "qlora"},
    "dora": {"name": "dora", "adapter.kind": "dora"},
    "full": {"name": "full", "adapter.kind": "none", "optimizer.lr": 2e-5},
}


def finetune_keys(model: str, data: Sequence[str], method: str, changes: Mapping[str, object]) -> JsonObject:
    """Returns the keys to change in FINETUNE_RECIPE; `changes` win. ValueError for an unknown method, or no data."""
    if method not in METHODS:
        raise ValueError(f"method {method!r}: no such method; choose from {', '.join(METHODS)}")
    if not data:
        raise ValueError("no data: name a file, folder, glob or URL of rows")
    sources = [_absolute(source) for source in data]
    return {
        **METHODS[method],
        "model.init_from": _absolute(model),
        "data.source": sources[0] if len(sources) == 1 else sources,
        **changes,
    }


def _absolute(path: str) -> str:
    typed = os.path.expanduser(path)
    return os.path.abspath(typed) if "://" not in path and os.path.exists(typed) else path
