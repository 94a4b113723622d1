"""A save of all ranks: what waits for what."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.storage.shards import FileEntry
from launchyard.training.checkpoint import together
from launchyard.training.checkpoint.together import Together


def test_no_rank_writes_before_rank_0_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 comes once its cleaning is over, which removes files that no manifest names."""
    said: list[str] = []

    def from_rank_zero(value: Any, *, group: Any = None) -> Any:
        said.append("rank 0")
        return value

    def write() -> FileEntry | None:
        said.append("written")
        return None

    monkeypatch.setattr(together, "from_rank_zero", from_rank_zero)
    monkeypatch.setattr(together, "to_rank_zero", lambda value, *, group=None: [value])
    ranks = Together()
    for _ in range(3):
        said.clear()
        ranks.save([], {}, write, lambda entries, joined: said.append("committed"))
        assert said[:2] == ["rank 0", "written"] and "committed" in said
