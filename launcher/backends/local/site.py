"""This machine offers nothing that a cluster file would have to say."""

from __future__ import annotations

from launchyard.launcher.backends.offer import Offer


def offers(address: str | None) -> list[Offer]:
    """None."""
    return []
