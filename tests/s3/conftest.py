"""Runs in S3: one is begun once, on this disk; each test gets a copy of it in a bucket of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3.runs import Origin, Remote, make_origin
from tests.support.faultproxy import FaultProxy
from tests.support.store import Bucket


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Origin:
    return make_origin(tmp_path_factory.mktemp("origin"))


@pytest.fixture
def remote(s3: Bucket, proxy: FaultProxy, origin: Origin, tmp_path: Path) -> Iterator[Remote]:
    """Its workers go through `proxy`; the test itself does not."""
    place = Remote(s3, origin, tmp_path)
    yield place
    place.close()
