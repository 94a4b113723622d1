"""What a site offers to runs, as its scheduler describes it: the facts from which a cluster file is written."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Offer:
    """Nodes that are alike, in one part of a site. `gpus`, `cpus` and `memory` (bytes): of one node.

    section: the scheduler's part of a cluster file. `choices`: keys of it of which one value must be chosen.
    """

    scheduler: str
    part: str
    title: str
    nodes: int
    gpus: int = 0
    gpu: str = ""  # kind, in the words of the site
    cpus: int | None = None
    memory: int | None = None
    time_limit: str | None = None  # the most that an attempt may take
    default: bool = False
    section: dict[str, object] = field(default_factory=dict)
    choices: dict[str, list[str]] = field(default_factory=dict)
