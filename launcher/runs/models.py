"""Where a MODEL lies: a path, a URL, a run by its id or name, one of its checkpoints, a model of the hub."""

from __future__ import annotations

import os

from launchyard.errors import UserError, user_errors
from launchyard.launcher.runs.find import find
from launchyard.launcher.runs.pinned import pinned_checkpoint
from launchyard.model.weights.source import base_and_adapter, find_source
from launchyard.storage.hub_cache import find_downloaded, hub_advice


def find_model(model: str) -> str:
    """The place of MODEL: a path or URL as it is, else the run of that id or name, else the model of the hub.

    RUN@best, RUN@last and RUN@STEP are checkpoints of a run that is named in any of these ways.
    """
    with user_errors():
        parts = base_and_adapter(model)
    if parts is not None:
        return f"{find_model(parts[0])}+{parts[1]}"
    if (checkpoint := pinned_checkpoint(model)) is not None:
        return checkpoint
    if "://" in model or os.sep in model:
        return model  # find_source knows names of the hub
    if os.path.exists(model):
        try:
            find_source(model)
        except FileNotFoundError:
            pass  # something that happens to be named like a run
        else:
            return model
    try:
        return find(model).url
    except UserError as error:
        if (downloaded := find_downloaded(model)) is not None:
            return downloaded
        advice = "" if "did you mean" in str(error) else hub_advice(model)
        raise UserError(str(error), hint=advice or error.hint) from error
