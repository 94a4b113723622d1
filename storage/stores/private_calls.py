"""The one private call of another package that stores need: a single request of s3fs, awaited on its event loop.

s3fs' public `call_s3` waits in the caller's thread; a body has to be read on the event loop, after the answer.
tests/test_private_calls.py says with which version it was tested, and fails by name where it is gone.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any


def request(fs: Any, method: str, **arguments: Any) -> Coroutine[Any, Any, Any]:
    """One request of the S3 API, by botocore's names of method and arguments; nothing is sent before it is awaited."""
    made: Coroutine[Any, Any, Any] = fs._call_s3(method, **arguments)
    return made
