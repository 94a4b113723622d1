"""The environment of the Ray sandbox: nothing that a person has set for another Ray reaches it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launchyard.launcher.sandbox.ray.host import environment


def test_its_nodes_want_no_token_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that finds one, in the home folder or so named, asks its nodes for it."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert environment(tmp_path)["RAY_AUTH_MODE"] == "disabled"
