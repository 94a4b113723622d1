"""Where a source of data lies: a path beside the recipe, a URL, or a set of the hub in its cache. Light."""

from __future__ import annotations

import glob
import os

from launchyard.errors import UserError
from launchyard.storage import files
from launchyard.storage.hub_cache import find_downloaded_dataset
from launchyard.training.data.built_in import BUILT_IN
from launchyard.training.sections.data import DataKind


def places_of(source: str, base: str | None, kind: DataKind) -> list[str]:
    """Where a source lies: a path, or the files of a set of the hub, by its short name or ORG/NAME."""
    path = locate(source, base)
    if "://" in path or is_there(path):
        return [path]
    known = BUILT_IN.get(source)
    if known is not None and known.kind != kind:
        raise UserError(
            f"data.kind: {source} holds {known.kind}, and its kind is {kind}", hint=f"data.kind={known.kind}"
        )
    folder = find_downloaded_dataset(known.repo if known else source)
    if folder is not None:
        return [f"{folder}/{pattern}" for pattern in known.files] if known else [folder]
    if known is not None:
        raise UserError(
            f"{source}: the set {known.repo} of the Hugging Face hub is not on this machine",
            hint=f"launch download --dataset {source}; or name a file or folder of your own",
        )
    return [path]


def locate(path: str, base: str | None) -> str:
    """A path as the recipe means it: beside the recipe if it is there, else from the working directory."""
    path = files.typed_path(path)
    if "://" in path or os.path.isabs(path):
        return path.removeprefix("file://")
    if base is not None and "://" in base:
        return f"{base.rstrip('/')}/{path}" if not is_there(path) else os.path.abspath(path)
    beside = os.path.join(base, path) if base is not None else path
    return os.path.abspath(beside if is_there(beside) else path)


def is_there(path: str) -> bool:
    return os.path.exists(path) or bool(glob.glob(path, recursive=True))
