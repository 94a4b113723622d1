"""The steps that are traced: those of the recipe, and those that a running worker is asked for. Light.

`launch profile` leaves its request in the run directory, the agent of each node brings it to a file beside the workers.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from launchyard.training.sections.metrics import ProfileConfig

REQUEST_FILE = "profile"  # in the folder that an agent shares with its workers


@dataclass(frozen=True)
class Window:
    """Steps `first` to `last`, counted from 1, and what their trace holds."""

    first: int
    last: int
    memory: bool = False
    shapes: bool = False
    stacks: bool = False


def windows_of(config: ProfileConfig | None, rank: int) -> list[Window]:
    """Those of one rank."""
    if config is None or not config.traces(rank):
        return []
    content = config.model_dump(include={"memory", "shapes", "stacks"})
    return [Window(first, last, **content) for first, last in config.windows]


def not_before(window: Window, step: int) -> Window:
    """The window, or if its first step has passed one as long from `step` on."""
    late = max(0, step - window.first)
    return Window(window.first + late, window.last + late, window.memory, window.shapes, window.stacks)


class Requests:
    """What this worker is asked for while it runs. scratch: the folder that its agent writes into, if there is one."""

    def __init__(self, scratch: str | None, rank: int) -> None:
        self._file = os.path.join(scratch, REQUEST_FILE) if scratch else None
        self._rank = rank
        self._seen: int | None = None  # its inode: an agent replaces the file

    def news(self) -> list[Window]:
        """Windows of a request since the last call. Costs one stat(). ValueError for one that makes no sense."""
        if self._file is None:
            return []
        try:
            inode = os.stat(self._file).st_ino
            if inode == self._seen:
                return []
            self._seen = inode
            with open(self._file) as file:
                record = json.load(file)
        except OSError:  # none
            return []
        return windows_of(config_in(record), self._rank)


def config_in(record: dict[str, object]) -> ProfileConfig:
    """The keys of `profile` in a request. ValueError if they make no sense."""
    return ProfileConfig.model_validate({key: record[key] for key in ProfileConfig.model_fields if key in record})
