"""Python's collector of garbage, kept from looking again and again at what a start has made and keeps."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected(*, lasting: bool) -> Iterator[None]:
    """No collection inside: imports make hundreds of thousands of objects and drop next to none.

    lasting: what there is at the end is never looked at again either; not in a program that has garbage of its own.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if lasting:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()
