"""What holds for every test: nothing of the user's own folders is touched, and long suites can be sampled."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.support.faultproxy import FaultProxy
    from tests.support.store import Bucket, S3Server

# Before anything imports torch: one thread a process, for many run at once and several threads sum in another order.
# No hub is asked for anything.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
# A busy machine is no fault of a test. In CI, where a change waits for the answer, the same examples each time.
settings.register_profile("ours", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("thorough", settings.get_profile("ours"), max_examples=2000, derandomize=False)
settings.load_profile("ours")
pytest_plugins = ["tests.support.texts"]
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


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """What a test sets for its whole process (how long calls are retried, the store's options) ends with it."""
    from launchyard.storage import retry
    from launchyard.storage.stores import registry

    budget, listeners, options = dict(retry._process), list(retry._listeners), registry._options["s3"]
    yield
    retry._process.update(budget)
    retry._listeners[:] = listeners
    registry.set_options(options)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with keys on loopback ports, one a test process; it dies with it."""
    from tests.support.store import running_server

    yield from running_server(tmp_path_factory.mktemp("s3"))


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A fresh bucket; the usual AWS variables of this process, and of those that it starts, lead to its server."""
    from tests.support.store import make_bucket, remove_bucket

    bucket = make_bucket(s3_server, f"test-{secrets.token_hex(6)}")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    yield bucket
    remove_bucket(bucket)


@pytest.fixture
def proxy(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the server of `s3`, faultless until a test says more; the usual variables lead to it."""
    from launchyard.storage.files import set_store_options
    from launchyard.storage.options import StoreOptions
    from tests.support.faultproxy import FaultProxy

    with FaultProxy(s3.server.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        set_store_options(StoreOptions(endpoint_url=between.endpoint))
        yield between
