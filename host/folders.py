"""The user's own folders of this machine, by XDG's rules. Knows no run."""

from __future__ import annotations

import os


def job_folder(run_url: str, logs: str) -> str:
    """Where the launcher keeps what a queued job needs: the run directory, or for a remote one a folder of the user."""
    return run_url if "://" not in run_url else f"{logs}/{run_url.rstrip('/').rsplit('/', 1)[-1]}"


def log_folder() -> str:
    """The user's own folder for what jobs print that have no local run directory."""
    import platformdirs

    return os.path.join(platformdirs.user_state_dir("launchyard"), "logs")
