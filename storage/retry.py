"""Calls of a store, made again until they succeed or the retry budget is spent: one policy for all stores."""

from __future__ import annotations

import contextvars
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from launchyard.storage.errors import RefusedError, StoreError

Verdict = Literal["missing", "taken", "passing", "refused", "final"]
Result = TypeVar("Result")
PATIENCE_SECONDS = 20.0
LONGEST_PAUSE_SECONDS = 5.0
SAY_SECONDS = 2.0
# A store that refuses before it ever gave anything is a mistake more often than a fault: a fifteenth of the patience.
FIRST_REFUSAL_SHARE = 1 / 15
# One call may take so long before it is given up and made again: a floor, and what a crawling connection would take.
CALL_SECONDS, SHORTEST_CALL_SECONDS = 30.0, 5.0
SLOWEST_BYTES_PER_SECOND = 256 << 10
_CREDENTIALS = {
    ("s3", "s3a"): " (AWS_* variables, profile)",
    ("gs", "gcs"): " (GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login)",
    ("az", "abfs", "abfss"): " (AZURE_STORAGE_* variables, az login)",
}


@dataclass(frozen=True)
class Trouble:
    """One failed try, or (`over`) the end of a series of them. `seconds` since the first."""

    what: str
    path: str
    message: str
    seconds: float
    over: bool = False
    pause: float = 0.0


# -- what a process has chosen ---------------------------------------------------------------------------------------
patience_here: contextvars.ContextVar[float | None] = contextvars.ContextVar("patience", default=None)
_process = {"patience": PATIENCE_SECONDS}
_watchers: list[Callable[[Trouble], None]] = []


def set_patience(seconds: float) -> None:
    _process["patience"] = seconds


def patience() -> float:
    here = patience_here.get()
    return _process["patience"] if here is None else here


def watch(callback: Callable[[Trouble], None]) -> None:
    """Hear of every failed try from now on, in whatever thread it happens."""
    _watchers.append(callback)


# -- patience --------------------------------------------------------------------------------------------------------
class Insistence:
    """Makes calls of one store until they succeed, or the patience is over."""

    def __init__(
        self,
        judge: Callable[[BaseException], Verdict],
        renew: Callable[[], None] = lambda: None,
        describe: Callable[[BaseException], str] = str,
    ) -> None:
        self._judge, self._renew, self._describe = judge, renew, describe
        self._answered: set[str] = set()  # buckets that have given or taken something

    def insist(self, what: str, path: str, action: Callable[[], Result]) -> Result:
        """`action`'s value. FileNotFoundError, FileExistsError, StoreError, or what only a change can mend."""
        began, tries, bucket = time.monotonic(), 0, path.split("/", 3)[2]
        while True:
            try:
                result = action()
            except Exception as error:
                verdict, said = self._judge(error), in_a_line(self._describe(error) or type(error).__name__)
                if verdict == "missing":
                    raise FileNotFoundError(2, "No such file", path) from error
                if verdict == "taken":
                    raise FileExistsError(17, "File exists", path) from error
                if verdict == "final":
                    if isinstance(error, OSError):
                        raise StoreError(f"{path}: could not {what}: {said}") from error
                    raise
                seconds, pause = time.monotonic() - began, _pause(tries)
                share = FIRST_REFUSAL_SHARE if verdict == "refused" and bucket not in self._answered else 1.0
                if seconds + pause > patience() * share:  # asked anew: it may have been shortened meanwhile
                    raise give_up(what, path, said, seconds, verdict) from error
                _tell(Trouble(what, path, said, seconds, pause=pause))
                if verdict == "refused":
                    self._renew()  # the credentials may have been renewed where they come from
                time.sleep(pause)
                tries += 1
            else:
                self._answered.add(bucket)
                if tries:
                    _tell(Trouble(what, path, "", time.monotonic() - began, over=True))
                return result


def _pause(tries: int) -> float:
    return float(min(LONGEST_PAUSE_SECONDS, 0.2 * 2**tries) * random.uniform(0.75, 1.25))


def _tell(trouble: Trouble) -> None:
    for callback in list(_watchers) or [_say]:
        callback(trouble)


def _say(trouble: Trouble) -> None:
    """To whoever waits for a command that nobody else tells anything."""
    if not trouble.over and trouble.seconds >= SAY_SECONDS > trouble.seconds - trouble.pause:
        said = f"{trouble.path}: cannot {trouble.what}: {trouble.message}; still trying"
        print(said, file=sys.stderr, flush=True)


def give_up(what: str, path: str, why: str, seconds: float, verdict: Verdict) -> StoreError:
    said = f"{path}: could not {what}: {why}"
    if verdict == "refused":
        protocol = path.partition("://")[0]
        where = next((words for names, words in _CREDENTIALS.items() if protocol in names), "")
        return RefusedError(f"{said}. Check the credentials{where}, their rights and the bucket's name")
    tried = f" (tried for {seconds:.0f} s)" if seconds >= 1 else ""
    return StoreError(
        f"{said}{tried}. Is the store up, and its endpoint right? Once it answers, the same can be done again"
    )


def in_a_line(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= 300 else f"{text[:300]} …"


def deadline(n_bytes: int) -> float:
    """Seconds that one call may take which moves so many bytes: longer than most take, not than who asks will wait."""
    most = max(SHORTEST_CALL_SECONDS, patience()) if patience() else CALL_SECONDS
    return min(CALL_SECONDS, most) + n_bytes / SLOWEST_BYTES_PER_SECOND


def of_status(status: int) -> Verdict:
    """What an HTTP status means that nothing more is known of."""
    if status in (401, 403):
        return "refused"
    if status == 404:
        return "missing"
    if status in (409, 412):
        return "taken"
    return "passing" if status >= 500 or status in (408, 425, 429) else "final"
