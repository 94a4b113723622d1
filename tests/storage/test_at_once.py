"""Questions to a store go out together; what one call after the other would have kept, they keep."""

from __future__ import annotations

import threading

import pytest

from launchyard.storage import retry
from launchyard.storage.at_once import at_once


def test_questions_to_a_store_do_not_wait_for_each_other() -> None:
    both_asked = threading.Barrier(2, timeout=10)
    at_once("memory://run", both_asked.wait, both_asked.wait)


def test_local_files_are_asked_by_the_caller_itself() -> None:
    asked: list[threading.Thread] = []
    at_once("/run", *[lambda: asked.append(threading.current_thread())] * 2)
    assert asked == [threading.current_thread()] * 2


def test_the_first_of_the_errors_is_raised_after_all_answers_have_come() -> None:
    answered = threading.Event()

    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(KeyError):
        at_once("memory://run", lambda: fail(KeyError()), lambda: fail(ValueError()), answered.set)
    assert answered.is_set()


def test_the_budget_of_the_caller_holds_for_all_questions() -> None:
    budgets: list[float] = []
    with retry.retry_budget(7.0):
        at_once("memory://run", *[lambda: budgets.append(retry.current_retry_budget())] * 2)
    assert budgets == [7.0, 7.0]
