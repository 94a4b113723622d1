"""The type of options and arguments that are paths or URLs."""

from __future__ import annotations

from launchyard.errors import user_errors
from launchyard.storage.files import typed_path


def path_or_url(value: str) -> str:
    """Returns a place as a person types it: ~ is the home, variables are a UserError. Does not look there."""
    with user_errors():
        return typed_path(value)
