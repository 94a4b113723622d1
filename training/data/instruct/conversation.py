"""Values between the parts of this room: a conversation as a file holds it, and the row of tokens made of it. Light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from launchyard.storage.damage import JsonObject
from launchyard.training.data.chunks import Array

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Turn:
    """What one side says. `trained`: the model learns to write it, and its end.

    input: what an Alpaca row gives beside its instruction. It follows the content, or has its place in a prompt style.
    """

    role: Role
    content: str
    trained: bool = False
    name: str | None = None
    tool_calls: tuple[JsonObject, ...] = ()
    input: str = ""


@dataclass(frozen=True)
class Conversation:
    """One row of a file. where: FILE:LINE or FILE, row N."""

    turns: tuple[Turn, ...]
    where: str
    tools: tuple[JsonObject, ...] = ()


@dataclass(frozen=True)
class Row:
    """Tokens of one conversation, and which of them are trained for: as labels, so the first never is."""

    ids: Array  # (T,) int64
    trained: np.ndarray[tuple[int], np.dtype[np.bool_]]  # (T,)
    where: str


@dataclass(frozen=True)
class Pair:
    """Two answers to one question, the better first. What both begin with is not trained for."""

    chosen: Conversation
    rejected: Conversation
    where: str
