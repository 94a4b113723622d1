"""Questions to a store asked at the same time: each answer takes a while to come, and they do not wait for each other.

Local files are asked one after the other, in this thread. Knows nothing of what is asked.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable

from launchyard.storage import files

MOST_AT_ONCE = 8


def at_once(place: str, *questions: Callable[[], object]) -> None:
    """Calls all `questions` about a file or folder, and raises the error of the first of them that failed."""
    if not files.is_remote(place):
        for question in questions:
            question()
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(MOST_AT_ONCE, len(questions)), thread_name_prefix="ask") as pool:
        asked = [pool.submit(contextvars.copy_context().run, question) for question in questions]  # its retry budget
    for answer in asked:
        answer.result()
