"""Prometheus and promtool for the tests that need them: those of this machine, else Debian's package, unpacked."""

from __future__ import annotations

import pytest

from launchyard.errors import UserError
from launchyard.launcher.sandbox.monitoring.observers import find_prometheus, require_prometheus


@pytest.fixture(scope="session")
def prometheus() -> str:
    try:
        return require_prometheus(report=print)
    except UserError as error:
        pytest.skip(f"no Prometheus here: {error}")


@pytest.fixture(scope="session")
def promtool(prometheus: str) -> str:
    found = find_prometheus("promtool")
    assert found is not None
    return found
