"""A Ray that is not one, and a person who uses it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_ray import FakeRay
from tests.support.typed import Place


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeRay]:
    made = FakeRay(tmp_path / "ray")
    yield made
    made.close()


@pytest.fixture
def place(
    cluster: FakeRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    options = {"address": cluster.address, "python": sys.executable, "wait_seconds": 0.5}
    made = Place(tmp_path, monkeypatch, capsys, {"scheduler": "ray", "node": {"cpus": 2}, "ray": options})
    yield made
    made.close()
