"""The one private call of another package that stores need: a single request of s3fs, awaited on its event loop.

s3fs' public `call_s3` waits in the caller's thread; a body has to be read on the event loop, after the answer.
tests/test_private_calls.py names the tested version, and fails where the call is gone.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any


def send_request(fs: Any, method: str, **arguments: Any) -> Coroutine[Any, Any, Any]:
    """Returns one request of the S3 API, by botocore's names of method and arguments; it is sent when awaited."""
    made: Coroutine[Any, Any, Any] = fs._call_s3(method, **arguments)
    return made
