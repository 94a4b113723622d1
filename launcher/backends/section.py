"""The list of backends, and the base of the sections of a cluster file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

FIRST = "local"  # the place where a launch runs that names none


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@cache
def known_backends() -> tuple[str, ...]:
    """Names of the folders here that hold one, the first place before the others."""
    names = sorted(path.parent.name for path in Path(__file__).parent.glob("*/backend.py"))
    return tuple(sorted(names, key=lambda name: (name != FIRST, name)))
