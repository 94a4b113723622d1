"""Calls of a store, made again until they succeed or the retry budget is spent: one policy for all stores.

Knows no store. Each store classifies its own errors (ErrorKind); this file decides on backoff, budget and message.
The clients below try once, so that every retry is counted, bounded and the same everywhere.
"""

from __future__ import annotations

import contextlib
import contextvars
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

from launchyard.storage.errors import DeniedError, RefusedError, StoreError

# missing, taken: the caller decides. transient: retried. refused: retried with credentials read anew.
# denied (a right is missing, the clock is wrong): retried for DENIED_SECONDS. unsupported, final: raised.
ErrorKind = Literal["missing", "taken", "transient", "refused", "denied", "unsupported", "final"]
DEFAULT_BUDGET_SECONDS = 20.0  # suits a command; a run sets minutes
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
REPORT_AFTER_SECONDS = 2.0
# A store that refuses before it ever gave anything is a mistake more often than a fault: a fifteenth of the budget.
FIRST_REFUSAL_SHARE = 1 / 15
DENIED_SECONDS = 5.0  # a right that was just given may take that long to be known everywhere
# Timeout of one call: a floor, and the time that a crawling connection would need.
CALL_SECONDS = 30.0
SHORTEST_CALL_SECONDS = 5.0
SLOWEST_BYTES_PER_SECOND = 256 << 10
_CREDENTIALS = {
    ("s3", "s3a"): " (AWS_* variables, profile)",
    ("gs", "gcs"): " (GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login)",
    ("az", "abfs", "abfss"): " (AZURE_STORAGE_* variables, az login)",
}
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RetryEvent:
    """One failed try, or (`over`) the success that ends a series of them.

    `seconds` since the first try, `previous` the same of the try before; `pause` in seconds until the next try.
    """

    what: str
    path: str
    message: str
    seconds: float
    over: bool = False
    pause: float = 0.0
    previous: float = 0.0


@dataclass
class _Series:
    """The tries of one call so far."""

    what: str
    path: str
    began: float
    tries: int = 0
    seconds: float = 0.0  # from the first try to the last failure
    denied_after: float | None = None  # from the first try to the first denial that nothing else has followed


# -- the budget ------------------------------------------------------------------------------------------------------
_budget_here: contextvars.ContextVar[float | None] = contextvars.ContextVar("retry_budget", default=None)
_process = {"budget": DEFAULT_BUDGET_SECONDS}


def set_retry_budget(seconds: float) -> None:
    """Sets for how long every call of this process is retried, also one that waits right now."""
    _process["budget"] = seconds


def current_retry_budget() -> float:
    """Returns the seconds for which a call made here and now would be retried."""
    here = _budget_here.get()
    return _process["budget"] if here is None else here


@contextlib.contextmanager
def retry_budget(seconds: float) -> Iterator[None]:
    """Sets another budget for the calls inside; 0 means one try."""
    token = _budget_here.set(seconds)
    try:
        yield
    finally:
        _budget_here.reset(token)


def call_timeout(n_bytes: int) -> float:
    """Returns the seconds that one call may take which moves so many bytes.

    Longer than most calls take, but not much longer than the caller is going to wait.
    """
    budget = current_retry_budget()
    most = max(SHORTEST_CALL_SECONDS, budget) if budget else CALL_SECONDS
    return min(CALL_SECONDS, most) + n_bytes / SLOWEST_BYTES_PER_SECOND


# -- listeners -------------------------------------------------------------------------------------------------------
_listeners: list[Callable[[RetryEvent], None]] = []


def subscribe(listener: Callable[[RetryEvent], None]) -> Callable[[], None]:
    """Calls `listener` for every RetryEvent from now on, in the thread where it happens; returns the way to end that.

    Without a listener a warning goes to stderr.
    """
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def _notify(event: RetryEvent) -> None:
    for listener in list(_listeners) or [_warn]:
        listener(event)


def _warn(event: RetryEvent) -> None:
    """Warns once in a series of failures, for a person who waits for a command."""
    if not event.over and event.seconds >= REPORT_AFTER_SECONDS > event.previous:
        print(
            f"{event.path}: cannot {event.what}: {event.message}; still trying",
            file=sys.stderr,
            flush=True,
        )


# -- retrying --------------------------------------------------------------------------------------------------------
class Retrier:
    """Makes the calls of one store.

    `classify` returns the kind of an error, `describe` its text, `renew` reads the credentials anew, `cure` returns a
    sentence about what ends a denial.
    """

    def __init__(
        self,
        classify: Callable[[BaseException], ErrorKind],
        renew: Callable[[], None] = lambda: None,
        describe: Callable[[BaseException], str] = str,
        cure: Callable[[BaseException], str] = lambda _: "See docs/guides/object-storage.md for what a run needs",
    ) -> None:
        self._classify = classify
        self._cure = cure
        self._renew = renew
        self._describe = describe
        self._answered: set[str] = set()  # buckets that have given or taken something

    def call(self, what: str, path: str, action: Callable[[], _Result]) -> _Result:
        """Returns the value of `action`, called again after each error that may pass.

        `what` completes the sentence "could not …". Raises FileNotFoundError, FileExistsError, StoreError once the
        budget is spent, or the error itself if only a change can fix it.
        """
        series = _Series(what, path, time.monotonic())
        while True:
            try:
                result = action()
            except Exception as error:
                time.sleep(self._pause_after(error, series))
                series.tries += 1
            else:
                self._answered.add(_bucket_of(path))
                if series.tries:
                    _notify(RetryEvent(what, path, "", time.monotonic() - series.began, over=True))
                return result

    def _pause_after(self, error: Exception, series: _Series) -> float:
        """Returns the seconds to wait before the next try; raises if there is to be none."""
        what = series.what
        path = series.path
        kind = self._classify(error)
        message = one_line(self._describe(error) or type(error).__name__)
        if kind == "missing":
            raise FileNotFoundError(2, "No such file", path) from error
        if kind == "taken":
            raise FileExistsError(17, "File exists", path) from error
        if kind == "final":
            if isinstance(error, OSError):
                raise StoreError(f"{path}: could not {what}: {message}") from error
            raise error
        if kind == "unsupported":
            raise self._denied(series, message, error) from error
        previous = series.seconds
        series.seconds = time.monotonic() - series.began
        if kind != "denied":
            series.denied_after = None
        elif series.denied_after is None:
            series.denied_after = series.seconds
            series.tries = 0  # short pauses again
        pause = backoff(series.tries)
        if series.seconds + pause > self._deadline(kind, series):
            raise (
                self._denied(series, message, error) if kind == "denied" else _budget_spent(series, message, kind)
            ) from error
        _notify(RetryEvent(what, path, message, series.seconds, pause=pause, previous=previous))
        if kind == "refused":
            self._renew()
        return pause

    def _deadline(self, kind: ErrorKind, series: _Series) -> float:
        """Returns the seconds from the first try on after which there is no other; a signal may have shortened it."""
        budget = current_retry_budget()
        if kind in ("refused", "denied") and _bucket_of(series.path) not in self._answered:
            budget *= FIRST_REFUSAL_SHARE
        return budget if series.denied_after is None else min(budget, series.denied_after + DENIED_SECONDS)

    def _denied(self, series: _Series, message: str, error: Exception) -> DeniedError:
        cure = self._cure(error)
        made = DeniedError(f"{series.path}: could not {series.what}: {message}. {cure}")
        made.cure = cure
        return made


def backoff(tries: int) -> float:
    """Returns the pause after so many tries: it doubles up to LONGEST_PAUSE_SECONDS, give or take a quarter."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 30)) * random.uniform(0.75, 1.25)


def _bucket_of(path: str) -> str:
    return path.split("/", 3)[2]


def _budget_spent(series: _Series, message: str, kind: ErrorKind) -> StoreError:
    text = f"{series.path}: could not {series.what}: {message}"
    if kind == "refused":
        protocol = series.path.partition("://")[0]
        where = next((hint for names, hint in _CREDENTIALS.items() if protocol in names), "")
        return RefusedError(f"{text}. Check the credentials{where}, their rights and the bucket's name")
    tried = f" (tried for {series.seconds:.0f} s)" if series.seconds >= 1 else ""
    return StoreError(
        f"{text}{tried}. Is the store up, and its endpoint right? Once it answers, the same can be done again"
    )


def one_line(text: str) -> str:
    """Returns a message without line breaks and final full stop, 300 characters at most."""
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 300 else f"{text[:300]} …"


def classify_status(status: int) -> ErrorKind:
    """Returns the kind of an error of which only the HTTP status is known."""
    if status == 401:
        return "refused"
    if status == 403:
        return "denied"
    if status in (405, 501):
        return "unsupported"
    if status == 404:
        return "missing"
    if status in (409, 412):
        return "taken"
    return "transient" if status >= 500 or status in (408, 425, 429) else "final"
