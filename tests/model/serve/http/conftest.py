from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.serve.served import Served, chat_model, served


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[Served]:
    with served(folder) as found:
        yield found
