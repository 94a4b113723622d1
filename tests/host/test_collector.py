"""Nothing is collected while a start makes its objects, and everything is afterwards, however it ended."""

from __future__ import annotations

import gc
import weakref

import pytest

from launchyard.host.collector import uncollected


class Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("lasting", [False, True])
def test_garbage_waits_and_is_collected_later(lasting: bool) -> None:
    frozen = gc.get_freeze_count()
    try:
        with uncollected(lasting=lasting):
            assert not gc.isenabled()
        assert gc.isenabled()
        assert (gc.get_freeze_count() > frozen) is lasting
        later = weakref.ref(Cycle())
        gc.collect()
        assert later() is None
    finally:
        gc.unfreeze()


def test_an_error_leaves_the_collector_as_it_was() -> None:
    with pytest.raises(ValueError, match="no run"), uncollected(lasting=True):
        raise ValueError("no run")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_program_that_collects_by_itself_goes_on_so() -> None:
    gc.disable()
    try:
        with uncollected(lasting=False):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
