"""Sends a run's notices to its webhook: by the owner alone, each once, and never in the way of the run.

`send` is the only sender of webhooks; the monitor pages with it, too.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from launchyard.host.environment import variable
from launchyard.host.periodic import PeriodicTask
from launchyard.launcher.agent.signals import log_line
from launchyard.run.layout import PLAN
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.run.tail import last_rows
from launchyard.storage.redact import without_credentials
from launchyard.training.notify.notices import Notice, leave_notice, mark_sent, unsent
from launchyard.training.notify.section import NotifyConfig, url_problem
from launchyard.training.recipe import Recipe

TRIES = 3
ONE_TRY_SECONDS = 3.0  # of one try
PAUSE_SECONDS = 0.5
FAREWELL_WAIT_SECONDS = 12.0  # at an end, for what is being sent
POLL_SECONDS = {True: 2.0, False: 15.0}  # between two looks for notices: local run directory, remote one


@dataclass
class Notifier:
    """config: None for a run that tells nobody, where nothing is done at all."""

    run: RunDir
    name: str
    config: NotifyConfig | None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._given_up: set[str] = set()
        self._task = PeriodicTask(self.deliver, every=POLL_SECONDS[self.run.local], in_thread=True)

    def poll(self) -> None:
        """Called while an attempt runs: workers leave notices of thresholds."""
        if self.config is not None and self.config.threshold is not None:
            self._task.poll()

    def ended(self, record: OutcomeRecord) -> None:
        """The run has ended so; its outcome is written."""
        self._tell("failure" if record.outcome == "failed" else "end", record, record.outcome)

    def moves_on(self, record: OutcomeRecord) -> None:
        """An attempt was ended from outside, and another one will follow."""
        self._tell("preempted", record, "pending")

    def _tell(self, event: str, record: OutcomeRecord, state: str) -> None:
        if self.config is None:
            return
        notice = Notice(
            event=event,
            attempt=record.attempt,
            state=state,
            reason=record.reason,
            message=record.message,
            step=record.step,
        )
        thread = threading.Thread(target=self._leave_and_deliver, args=(notice,), name="notify", daemon=True)
        thread.start()
        thread.join(FAREWELL_WAIT_SECONDS)

    def _leave_and_deliver(self, notice: Notice) -> None:
        assert self.config is not None
        try:
            if notice.event in self.config.on:
                leave_notice(self.run, notice)
            self.deliver()
        except OSError as error:
            log_line(f"notify: {type(error).__name__}: {error}")

    def deliver(self) -> None:
        """Sends what was left and is not sent yet; what fails is tried again by the next owner."""
        with self._lock:
            for notice in unsent(self.run):
                if notice.name not in self._given_up and not self._delivered(notice):
                    self._given_up.add(notice.name)

    def _delivered(self, notice: Notice) -> bool:
        assert self.config is not None
        url = self.config.webhook or variable(self.config.webhook_env or "")
        if not url or (problem := url_problem(url)):
            where = f"variable {self.config.webhook_env}"
            log_line(f"notify: {notice.name} is not sent: {where} {problem if url else 'is not set here'}")
            return False
        answer = send(url, self._body(notice))
        if answer is None:
            mark_sent(self.run, notice)
            log_line(f"notify: {notice.name} is sent")
            return True
        log_line(f"notify: {notice.name} is not sent: {answer}")
        return False

    def _body(self, notice: Notice) -> dict[str, object]:
        loss = _last_loss(self.run)
        text = _text(self.name, notice, loss)
        facts = notice.model_dump(exclude={"sent"}, exclude_none=True)
        whose = {"run_id": _run_id(self.run), "name": self.name, "url": without_credentials(self.run.url)}
        return {"text": text, "content": text, **whose, **facts, **({} if loss is None else {"loss": loss})}


def notifier_of(run: RunDir, recipe: Recipe | None) -> Notifier:
    """recipe: None where it cannot be read, which then nobody is told."""
    return Notifier(run, "" if recipe is None else recipe.name, None if recipe is None else recipe.notify)


def send(url: str, facts: Mapping[str, object]) -> str | None:
    """Posts facts as JSON, a few times if need be; None once they are taken, else what went wrong without the URL."""
    body = json.dumps(facts).encode()
    answer = None
    for number in range(TRIES):
        time.sleep(PAUSE_SECONDS * number)
        answer, again = _post(url, body)
        if answer is None or not again:
            break
    return answer


def _text(name: str, notice: Notice, loss: float | None) -> str:
    if notice.event == "threshold" and notice.value is not None:
        return f"{name}: {notice.metric} is {notice.value:.6g} at step {notice.step}"
    at = "" if notice.step is None else f" at step {notice.step}"
    at += "" if loss is None else f", loss {loss:.4f}"
    verb = {"pending": "was preempted and goes on later"}.get(notice.state, f"has {_past(notice.state)}")
    why = f": {notice.message}" if notice.message else ""
    return f"{name} {verb}{at} ({notice.reason}){why}"


def _past(state: str) -> str:
    return {"completed": "completed", "stopped": "stopped"}.get(state, "failed")


def _run_id(run: RunDir) -> str:
    return str((run.find_json(PLAN) or {}).get("run_id", ""))


def _last_loss(run: RunDir) -> float | None:
    """Of the newest row of the newest attempt."""
    attempts = run.attempts()
    rows = last_rows(run, attempts[-1:])
    return float(rows[-1]["loss"]) if rows else None


class _Stays(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET, and elsewhere than the recipe says."""

    def redirect_request(self, *args: object) -> None:
        return None


def _post(url: str, body: bytes) -> tuple[str | None, bool]:
    """(None of a success, else what went wrong without the URL; is another try of use)."""
    request = urllib.request.Request(url, data=body, method="POST")  # noqa: S310  the scheme is checked
    request.add_header("Content-Type", "application/json")
    request.add_header("User-Agent", "launchyard")
    try:
        with urllib.request.build_opener(_Stays).open(request, timeout=ONE_TRY_SECONDS):
            return None, False
    except urllib.error.HTTPError as error:
        error.close()
        return f"the webhook answered {error.code}", error.code == 429 or error.code >= 500
    except (OSError, ValueError) as error:  # URLError, a time-out, or what is no HTTP
        reason = getattr(error, "reason", error)
        return f"the webhook does not answer: {type(reason).__name__}", True
