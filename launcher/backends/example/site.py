"""The queue is a folder that its user chooses: nothing of it can be found."""

from __future__ import annotations

from launchyard.launcher.backends.offer import Offer


def offers(address: str | None) -> list[Offer]:
    """None."""
    return []
