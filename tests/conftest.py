"""What holds for every test: nothing of the user's own folders is touched, and long suites can be sampled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

FOLDERS = ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--first-of-each-file", action="store_true", help="of the tests selected, run the first of each file only"
    )


@pytest.hookimpl(trylast=True)  # after -m and -k have had their say
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--first-of-each-file"):
        return
    seen: set[str] = set()
    kept, left = [], []
    for item in items:
        (left if str(item.path) in seen else kept).append(item)
        seen.add(str(item.path))
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture(scope="session", autouse=True)
def _no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Registry, cache and clusters of whoever runs the tests stay out of them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield
