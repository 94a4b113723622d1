"""The user's own folders by XDG's rules, and the folder of a queued job. Makes none of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def user_state_folder(*parts: str) -> Path:
    """Returns the folder of files that must survive a restart: the registry of runs, logs, sandboxes."""
    import platformdirs

    return Path(platformdirs.user_state_dir("launchyard"), *parts)


def user_cache_folder(*parts: str) -> Path:
    """Returns the folder of files that can be made again: prepared text, chunks of stores, downloads."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("launchyard"), *parts)


def user_config_folder(*parts: str) -> Path:
    """Returns the folder of the user's own files: cluster files."""
    import platformdirs

    return Path(platformdirs.user_config_dir("launchyard"), *parts)


# variable that moves it -> folder, of those that every launch writes to
USER_FOLDERS = {"XDG_STATE_HOME": user_state_folder, "XDG_CACHE_HOME": user_cache_folder}


def folder_advice(path: str | os.PathLike[str] | None) -> str | None:
    """Returns how to move the user's folder that a path is in, or leads to; None for any other path."""
    if path is None or not os.path.isabs(path):
        return None
    named = Path(path)
    for variable, folder in USER_FOLDERS.items():
        on_the_way = named in folder().parents and not os.path.exists(named)  # it could not be made
        if on_the_way or folder() in (named, *named.parents):
            return f"set {variable} to a folder that can be written"
    return None


def only_ours(folder: Path) -> bool:
    """Returns True if the folder is ours and nobody else may write to it: code may be run from there."""
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def log_folder() -> str:
    """Returns the folder for the output of jobs without a local run directory."""
    return os.fspath(user_state_folder("logs"))


def owner_log(run_url: str, logs: str) -> str:
    """Returns the file in `logs` for the output of a job of this machine whose run directory is remote."""
    import hashlib

    return f"{logs}/{hashlib.sha256(run_url.encode()).hexdigest()[:16]}.log"


def job_folder(run_url: str, logs: str) -> str:
    """Returns the folder for the files of a queued job: a local run directory, else a folder of the user in `logs`."""
    return run_url if "://" not in run_url else f"{logs}/{run_url.rstrip('/').rsplit('/', 1)[-1]}"
