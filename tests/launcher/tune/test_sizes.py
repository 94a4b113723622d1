"""The search for the largest micro-batch finds it, whatever the machine can hold, and does not try all sizes."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.trial.trial import TrialVerdict
from launchyard.launcher.tune.sizes import search_largest, sizes_of

SHARES = st.integers(1, 2000)


@given(SHARES, st.integers(0, 2500))
def test_the_largest_that_fits_is_found(share: int, room: int) -> None:
    sizes = sizes_of(share)
    tried = dict(search_largest(sizes, lambda size: "fits" if size <= room else "no memory"))
    fitting = [size for size in sizes if size <= room]
    assert max((size for size, verdict in tried.items() if verdict == "fits"), default=0) == max(fitting, default=0)
    assert all(share % size == 0 for size in tried)
    assert len(tried) <= 2 * math.log2(share) + 3


@given(SHARES, st.integers(1, 2500))
def test_nothing_is_tried_twice_or_after_one_that_is_too_slow(share: int, patience: int) -> None:
    def attempt(size: int) -> TrialVerdict:
        return "fits" if size < patience else "too slow"

    tried = list(search_largest(sizes_of(share), attempt))
    assert len({size for size, _ in tried}) == len(tried)
    assert [verdict for _, verdict in tried[:-1]] == ["fits"] * (len(tried) - 1)
