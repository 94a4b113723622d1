from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.serve.http.browser import Chromium, Tab, fresh_tab, running_chromium
from tests.model.serve.http.scripted import Scripted, scripted
from tests.model.serve.served import Served, chat_model, served


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Iterator[Served]:
    with served(folder) as found:
        yield found


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with running_chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture
def tab(chromium: Chromium) -> Iterator[Tab]:
    """With storage of its own. Its console must stay silent."""
    with fresh_tab(chromium) as found:
        found.resize(1200, 800)
        yield found
        assert found.complaints() == []


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as found:
        yield found


@pytest.fixture
def page(tab: Tab, server: Scripted) -> Tab:
    """The chat page, ready."""
    tab.open(server.url)
    tab.wait("document.title !== 'Chat'")
    return tab
