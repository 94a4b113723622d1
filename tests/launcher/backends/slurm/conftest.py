"""A SLURM that is not one, and a person at its login node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_slurm import FakeSlurm
from tests.support.typed import Place


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    """Its commands go first on PATH of this process and of all that it starts."""
    made = FakeSlurm(tmp_path / "slurm")
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


@pytest.fixture
def place(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Place]:
    options = {"partition": "spot", "notice_seconds": 10}
    environment = {"SLURM_CONF": slurm.env["SLURM_CONF"]}
    cluster = {"scheduler": "slurm", "node": {"cpus": 2}, "slurm": options, "environment": environment}
    made = Place(tmp_path, monkeypatch, capsys, cluster)
    yield made
    made.close()
