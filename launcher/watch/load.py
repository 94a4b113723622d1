"""A model by any of its names from Python: `from launchyard import load`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Unpack

from launchyard.launcher.runs.models import find_model

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel
    from launchyard.model.weights.load import LoadOptions


def load_model(model: str | os.PathLike[str], **options: Unpack[LoadOptions]) -> LoadedModel:
    """A model that writes text: a folder, a GGUF file, a run or `latest`, a checkpoint, a hub name, BASE+ADAPTER.

    UserError if there is no such model.
    """
    from launchyard.model.weights.load import load

    return load(find_model(os.fspath(model)), **options)
