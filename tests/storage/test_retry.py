"""The retry policy by a fake clock: kinds of errors, budget, backoff, events and messages."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launchyard.storage import retry
from launchyard.storage.errors import DeniedError, RefusedError, StoreError

URL = "s3://bucket/folder/file"


class Fault(Exception):
    """An error of a store that says its kind itself."""


class Refusal(OSError):
    """The same, as an error of the operating system."""


class Clock:
    """Time that passes only while somebody sleeps, or where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(retry, "time", types.SimpleNamespace(monotonic=made.monotonic, sleep=made.sleep))
    return made


@pytest.fixture
def events() -> Iterator[list[retry.RetryEvent]]:
    heard: list[retry.RetryEvent] = []
    unsubscribe = retry.subscribe(heard.append)
    yield heard
    unsubscribe()


def kind_of(error: BaseException) -> Any:
    return error.args[0]


def failing(kind: str, times: float = float("inf"), error: type[Exception] = Fault) -> Callable[[], str]:
    """A call that fails so many times."""
    left = [times]

    def action() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise error(kind)
        return "value"

    return action


def retrier(**more: Any) -> retry.Retrier:
    return retry.Retrier(kind_of, describe=lambda error: "it said\n so.", **more)


def test_what_passes_is_retried_and_told(clock: Clock, events: list[retry.RetryEvent]) -> None:
    assert retrier().call("read", URL, failing("transient", 3)) == "value"
    assert len(clock.pauses) == 3
    assert [event.over for event in events] == [False, False, False, True]
    assert [event.pause for event in events] == [*clock.pauses, 0.0]
    assert events[0].message == "it said so" and events[-1].seconds == pytest.approx(sum(clock.pauses))


def test_a_first_success_is_no_event(clock: Clock, events: list[retry.RetryEvent]) -> None:
    assert retrier().call("read", URL, failing("transient", 0)) == "value"
    assert not events and not clock.pauses


@pytest.mark.parametrize(
    ("kind", "error", "raised"),
    [
        ("missing", Fault, FileNotFoundError),
        ("taken", Fault, FileExistsError),
        ("final", Fault, Fault),
        ("final", Refusal, StoreError),
    ],
)
def test_what_no_retry_changes_is_raised_at_once(
    kind: str, error: type[Exception], raised: type[Exception], clock: Clock, events: list[retry.RetryEvent]
) -> None:
    with pytest.raises(raised):
        retrier().call("read", URL, failing(kind, error=error))
    assert not clock.pauses and not events


@pytest.mark.parametrize("budget", [0.0, 1.0, 20.0, 900.0])
def test_the_budget_is_used_and_never_overdrawn(budget: float, clock: Clock, events: list[retry.RetryEvent]) -> None:
    with retry.retry_budget(budget), pytest.raises(StoreError, match="could not write: it said so") as caught:
        retrier().call("write", URL, failing("transient"))
    waited = clock.now - 1000
    assert waited <= budget
    assert waited > budget - 1.25 * retry.LONGEST_PAUSE_SECONDS
    assert len(events) == len(clock.pauses), "the last failure is the error itself"
    assert not isinstance(caught.value, RefusedError)


def test_backoff_doubles_to_a_limit() -> None:
    for tries in (0, 1, 2, 3, 4, 5, 100, 10_000):
        middle = min(retry.LONGEST_PAUSE_SECONDS, retry.FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 10))
        drawn = [retry.backoff(tries) for _ in range(200)]
        assert 0.75 * middle <= min(drawn) < max(drawn) <= 1.25 * middle


def test_a_refusal_at_first_contact_is_an_error_soon_and_later_a_fault(clock: Clock) -> None:
    renewed: list[float] = []
    calls = retrier(renew=lambda: renewed.append(clock.now))
    with retry.retry_budget(30), pytest.raises(RefusedError, match="Check the credentials"):
        calls.call("read", URL, failing("refused"))
    assert 0 < clock.now - 1000 <= 30 * retry.FIRST_REFUSAL_SHARE
    assert len(renewed) == len(clock.pauses), "credentials are read anew before each further try"
    calls.call("read", URL, failing("refused", 0))
    clock.now = 1000.0
    with retry.retry_budget(30), pytest.raises(RefusedError):
        calls.call("read", URL, failing("refused"))
    assert clock.now - 1000 > 20
    clock.now = 1000.0
    with retry.retry_budget(30), pytest.raises(RefusedError):
        calls.call("read", "s3://other/file", failing("refused"))
    assert clock.now - 1000 <= 2, "another bucket has not answered yet"


def test_a_denial_is_final_after_a_short_grace(clock: Clock) -> None:
    """However long the budget; and the grace begins with the denial, not with what was waited out before it."""
    calls = retrier(cure=lambda error: "Grant it")
    calls.call("read", URL, failing("refused", 0))
    for before in (0, 40):
        kinds = iter(["transient"] * before)
        clock.now = began = 1000.0
        denied: list[float] = []

        def action(kinds: Iterator[str] = kinds, denied: list[float] = denied) -> None:
            kind = next(kinds, "denied")
            if kind == "denied":
                denied.append(clock.now)
            raise Fault(kind)

        with retry.retry_budget(900), pytest.raises(DeniedError, match=r"could not read: it said so\. Grant it"):
            calls.call("read", URL, action)
        assert len(denied) > 1 and clock.now - denied[0] <= retry.DENIED_SECONDS
        assert before == 0 or denied[0] - began > retry.DENIED_SECONDS
    with retry.retry_budget(30), pytest.raises(DeniedError):
        clock.now = 1000.0
        calls.call("read", "s3://other/file", failing("denied"))
    assert clock.now - 1000 <= 30 * retry.FIRST_REFUSAL_SHARE


def test_what_a_store_does_not_offer_is_asked_once(clock: Clock) -> None:
    with retry.retry_budget(900), pytest.raises(DeniedError):
        retrier().call("list", URL, failing("unsupported"))
    assert not clock.pauses


def test_a_budget_that_is_shortened_ends_what_waits(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(retry._process, "budget", 900.0)
    count = [0]

    def action() -> None:
        count[0] += 1
        if count[0] == 5:
            retry.set_retry_budget(1.0)
        raise Fault("transient")

    with pytest.raises(StoreError):
        retrier().call("read", URL, action)
    assert count[0] == 5


def test_budgets_nest() -> None:
    outer = retry.current_retry_budget()
    with retry.retry_budget(3):
        with retry.retry_budget(0):
            assert retry.current_retry_budget() == 0
        assert retry.current_retry_budget() == 3
    assert retry.current_retry_budget() == outer


def test_a_call_gets_no_more_time_than_its_caller_has() -> None:
    with retry.retry_budget(900):
        assert retry.call_timeout(0) == retry.CALL_SECONDS
        assert retry.call_timeout(1 << 30) > 3600
    with retry.retry_budget(8):
        assert retry.call_timeout(0) == 8
    with retry.retry_budget(1):
        assert retry.call_timeout(0) == retry.SHORTEST_CALL_SECONDS
    with retry.retry_budget(0):  # one try, which may take its time
        assert retry.call_timeout(0) == retry.CALL_SECONDS


def test_a_person_who_waits_is_warned_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    retrier().call("read", URL, failing("transient", 6))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{URL}: cannot read: it said so; still trying"]


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ([401], "refused"),
        ([403], "denied"),
        ([405, 501], "unsupported"),
        ([404], "missing"),
        ([409, 412], "taken"),
        ([408, 425, 429, 500, 502, 503, 504, 599], "transient"),
        ([400, 416], "final"),
    ],
)
def test_statuses(statuses: list[int], kind: str) -> None:
    assert {retry.classify_status(status) for status in statuses} == {kind}
