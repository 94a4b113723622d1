"""Runs of the stand-in worker; whatever a test leaves running is ended."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.standin import Standin


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    run = Standin(tmp_path)
    yield run
    run.close()
