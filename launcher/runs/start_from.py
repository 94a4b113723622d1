"""What a recipe starts from: weights and tokenizer, which it may name as runs, models of the hub or adapters."""

from __future__ import annotations

import os
from dataclasses import replace

from launchyard.errors import RecipeErrors, UserError, user_errors
from launchyard.launcher.recipe.load import LoadedRecipe
from launchyard.launcher.runs.find import find
from launchyard.launcher.runs.pinned import pinned_checkpoint
from launchyard.model.config import ModelConfig
from launchyard.model.weights.source import base_and_adapter
from launchyard.storage.files import typed_path
from launchyard.storage.hub_cache import find_downloaded, hub_advice
from launchyard.storage.redact import redact


def with_found_files(loaded: LoadedRecipe) -> LoadedRecipe:
    """The recipe as a run freezes it: with the places of the weights and the tokenizer that it names."""
    return _with_found_tokenizer(_with_found_weights(loaded))


def _with_found_weights(loaded: LoadedRecipe) -> LoadedRecipe:
    """model.init_from may be a run or a model of the hub; the run's own copy of the recipe holds its place.

    That of a model of the hub holds its commit: a run that is resumed reads the same files.
    """
    name = loaded.recipe.model.init_from
    if not name:
        return loaded
    try:
        with user_errors("model.init_from"):
            name = typed_path(name)
    except UserError as error:
        raise RecipeErrors([f"{loaded.origin('model.init_from')}: {error}"]) from error
    if (parts := base_and_adapter(name)) is not None:
        base = _with_found_weights(_with_weights(loaded, parts[0])).recipe.model.init_from
        adapter = parts[1] if "://" in parts[1] else os.path.abspath(typed_path(parts[1]))
        return _with_weights(loaded, f"{base}+{adapter}")
    with user_errors(f"{loaded.origin('model.init_from')}: model.init_from"):
        if (checkpoint := pinned_checkpoint(name)) is not None:
            return _with_weights(loaded, checkpoint if "://" in checkpoint else os.path.abspath(checkpoint))
    if "://" in name or os.path.isabs(name):
        return _with_weights(loaded, name)
    try:
        url = os.path.abspath(name) if os.path.exists(name) else find(name).url
    except UserError as error:
        with user_errors(f"{loaded.origin('model.init_from')}: model.init_from"):
            if (downloaded := find_downloaded(name)) is not None:
                return _with_weights(loaded, downloaded)
        what = f"{loaded.origin('model.init_from')}: model.init_from: no such folder, and {error}"
        raise RecipeErrors([what], hint=hub_advice(name) or error.hint) from error
    return _with_weights(loaded, url)


def _with_weights(loaded: LoadedRecipe, url: str) -> LoadedRecipe:
    model = loaded.recipe.model.model_copy(update={"init_from": url})
    raw = {**loaded.raw, "model": {**loaded.raw["model"], "init_from": url}}
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"model": model}), raw=raw)


def _with_found_tokenizer(loaded: LoadedRecipe) -> LoadedRecipe:
    """The same for `tokenizer`, as far as it is a model of the hub."""
    name = loaded.recipe.tokenizer
    if not name or "://" in name or os.path.exists(name):
        return loaded
    with user_errors(f"{loaded.origin('tokenizer')}: tokenizer"):
        folder = find_downloaded(name)
    if folder is None:
        return loaded
    recipe = loaded.recipe.model_copy(update={"tokenizer": folder})
    return replace(loaded, recipe=recipe, raw={**loaded.raw, "tokenizer": folder})


def shape_of(loaded: LoadedRecipe) -> ModelConfig | None:
    """The knobs of the weights to start from, if the recipe names some."""
    source = loaded.recipe.model.init_from
    if source is None:
        return None
    from launchyard.model.weights.source import check_is_weights, find_source, read_config
    from launchyard.storage.errors import CorruptError

    try:
        check_is_weights(find_source(source), source)
        return read_config(source)
    except (OSError, ValueError, CorruptError) as error:
        where = loaded.origin("model.init_from")
        raise RecipeErrors([f"{where}: model.init_from: {redact(str(error))}"]) from error
