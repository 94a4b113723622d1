"""From a model, rows and a method to the recipe that finetunes: that of the method, and what changes in it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from launchyard.storage.damage import JsonObject

METHODS = ("lora", "qlora", "dora", "adapter", "adapter-v2", "full", "dpo")


def finetune_recipe(method: str) -> str:
    """Returns the name of the bundled recipe of a method. ValueError if there is none."""
    if method not in METHODS:
        raise ValueError(f"method {method!r}: no such method; choose from {', '.join(METHODS)}")
    return f"finetune/{method}"


def finetune_keys(model: str, data: Sequence[str], changes: Mapping[str, object]) -> JsonObject:
    """Returns the keys to change in such a recipe; `changes` win. ValueError for no data."""
    if not data:
        raise ValueError("no data: name a file, folder, glob or URL of rows")
    sources = [_absolute(source) for source in data]
    return {
        "model.init_from": _absolute(model),
        "data.source": sources[0] if len(sources) == 1 else sources,
        **changes,
    }


def _absolute(path: str) -> str:
    typed = os.path.expanduser(path)
    return os.path.abspath(typed) if "://" not in path and os.path.exists(typed) else path
