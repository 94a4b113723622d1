"""A small recipe as a mapping, and a folder of its own for each test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.small_runs import MODEL, write_data

STEPS = 8


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data = write_data(tmp_path_factory.mktemp("tokens"))
    assert data.validation
    return {
        "name": "tiny",
        "model": MODEL,
        "data": {
            "source": data.train[0].folder,
            "validation": data.validation[0].folder,
            "seq_len": 16,
            "seed": 3,
        },
        "train": {"max_steps": STEPS, "global_batch_size": 12, "seed": 1, "device": "cpu"},
        "optimizer": {"lr": 3e-3},
        "checkpoint": {"every_steps": 3},
        "validation": {"every_steps": 4},
        "metrics": {"prometheus": False},
    }


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
