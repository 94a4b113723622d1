"""The search for the largest micro-batch: by doubling, then between the last that fits and the first that does not.

Knows no process and no memory: whoever calls it tries one size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from launchyard.launcher.trial.trial import TrialVerdict


def sizes_of(share: int) -> list[int]:
    """Micro-batches into which the sequences of one worker can be cut, ascending."""
    return [size for size in range(1, share + 1) if share % size == 0]


def search_largest(sizes: Sequence[int], attempt: Callable[[int], TrialVerdict]) -> Iterator[tuple[int, TrialVerdict]]:
    """Each size that is tried, with its verdict. It takes that what fits fits at any smaller size as well.

    One that is too slow ends the search: no larger one is faster to try.
    """
    good = -1
    bad = len(sizes)
    at = 0
    while at < bad:
        verdict = attempt(sizes[at])
        yield sizes[at], verdict
        if verdict == "too slow":
            return
        if verdict == "no memory":
            bad = at
            break
        good = at
        at = _twice(sizes, at)
    while bad - good > 1:
        at = (good + bad) // 2
        verdict = attempt(sizes[at])
        yield sizes[at], verdict
        if verdict == "fits":
            good = at
        else:
            bad = at


def _twice(sizes: Sequence[int], at: int) -> int:
    """The place of the first size that is twice as large, else the last one; behind the end after that."""
    if at == len(sizes) - 1:
        return len(sizes)
    return next((n for n in range(at + 1, len(sizes)) if sizes[n] >= 2 * sizes[at]), len(sizes) - 1)
