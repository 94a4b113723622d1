"""A webhook is told once of each event, by a real server, whatever dies; a slow or dead one holds up nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from launchyard.errors import RecipeErrors
from launchyard.launcher.agent import notify
from launchyard.launcher.agent.notify import Notifier
from launchyard.launcher.submit.launch import Request, make_ready
from launchyard.run.records import OutcomeRecord
from launchyard.run.rundir import RunDir
from launchyard.training.notify.notices import Notice, leave_notice, unsent
from launchyard.training.notify.section import NotifyConfig
from launchyard.training.notify.threshold import ThresholdWatch, open_threshold
from tests.support.shell import Shell


class Webhook:
    """A server of this machine that keeps what it is told; answers: status codes to give first."""

    def __init__(self, *answers: int, seconds: float = 0.0) -> None:
        self.told: list[dict[str, Any]] = []
        codes = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                time.sleep(seconds)
                code = codes.pop(0) if codes else 200
                if code == 200:
                    self.told.append(body)
                handler.send_response(code)
                handler.end_headers()

            def log_message(handler, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def events(self) -> list[str]:
        return [one["event"] for one in self.told]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(str(tmp_path / "run"))
    run.write_json("plan.json", {"run_id": "small-1"})
    return run


@pytest.fixture
def hooks() -> Iterator[Callable[..., Webhook]]:
    made: list[Webhook] = []

    def make(*answers: int, seconds: float = 0.0) -> Webhook:
        made.append(Webhook(*answers, seconds=seconds))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def webhook(hooks: Callable[..., Webhook]) -> Webhook:
    return hooks()


def ended(outcome: str = "completed", attempt: int = 0) -> OutcomeRecord:
    return OutcomeRecord(outcome=outcome, reason="done", message="all 5 steps", attempt=attempt, step=5, time=1.0)  # type: ignore[arg-type]


def notifier(run: RunDir, url: str, **more: Any) -> Notifier:
    return Notifier(run, "small", NotifyConfig(webhook=url, **more))


def test_an_end_is_told_once_by_any_number_of_owners(run: RunDir, webhook: Webhook) -> None:
    for _ in range(2):  # the second: another owner of the same attempt, after a restart
        notifier(run, webhook.url).ended(ended())
    assert webhook.events == ["end"]
    (told,) = webhook.told
    assert told["text"] == told["content"] == "small has completed at step 5 (done): all 5 steps"
    assert told["run_id"] == "small-1" and told["url"] == run.url and told["state"] == "completed"
    notifier(run, webhook.url).ended(ended("failed", attempt=1))
    assert webhook.events == ["end", "failure"]


def test_only_what_is_asked_for(run: RunDir, webhook: Webhook) -> None:
    some = notifier(run, webhook.url, on=["failure"])
    some.ended(ended())
    some.moves_on(ended("stopped"))
    assert webhook.told == []
    notifier(run, webhook.url, on=["preempted"]).moves_on(ended("stopped"))
    assert webhook.events == ["preempted"]


def test_a_server_that_fails_is_tried_again_and_a_refusal_is_not(
    run: RunDir, hooks: Callable[..., Webhook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.0)
    shaky = hooks(503, 429)
    notifier(run, shaky.url).ended(ended())
    assert shaky.events == ["end"]
    refusing = hooks(404)
    notifier(run, refusing.url).ended(ended(attempt=1))
    assert refusing.told == [] and [one.name for one in unsent(run)] == ["end-0001"]
    notifier(run, refusing.url).deliver()  # the next owner tries again
    assert refusing.events == ["end"] and not list(unsent(run))


def test_a_slow_or_dead_one_holds_up_nothing(
    run: RunDir, hooks: Callable[..., Webhook], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "ONE_TRY_SECONDS", 0.2)
    monkeypatch.setattr(notify, "PAUSE_SECONDS", 0.0)
    slow = hooks(seconds=2.0)
    dead = hooks()
    dead.close()
    for hook in (slow, dead):
        leave_notice(run, Notice(event="threshold", metric="loss", value=0.5, step=3))
        polled = notifier(run, hook.url, threshold={"below": 1.0})
        began = time.monotonic()
        polled.poll()
        assert time.monotonic() - began < 1.0
        began = time.monotonic()
        polled.ended(ended())
        assert time.monotonic() - began < 3.0
    monkeypatch.setattr(notify, "FAREWELL_WAIT_SECONDS", 0.3)
    monkeypatch.setattr(notify, "ONE_TRY_SECONDS", 30.0)
    began = time.monotonic()
    notifier(run, hooks(seconds=4.0).url).ended(ended(attempt=7))
    assert time.monotonic() - began < 3.0


def test_the_threshold_is_noticed_once(run: RunDir) -> None:
    config = NotifyConfig(webhook_env="HOOK", threshold={"metric": "validation_loss", "below": 2.0})  # type: ignore[arg-type]
    for _ in range(2):  # a worker, and the one after a kill
        watch = open_threshold(run, config)
        assert isinstance(watch, ThresholdWatch)
        for step, value in enumerate([3.0, float("nan"), None, 1.9, 1.5], start=1):
            watch.saw(step, {"loss": 0.0, "validation_loss": value})
            watch.wait()
    (notice,) = unsent(run)
    assert (notice.name, notice.step, notice.value) == ("threshold", 4, 1.9)
    assert open_threshold(run, config.model_copy(update={"on": ["end"]})) is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"webhook": "http://example.com/x"}, "https://"),
        ({"webhook": "https://hooks.slack.com/services/T/B/x"}, "webhook_env"),
        ({"webhook": "https://example.com/x?token=1"}, "webhook_env"),
        ({"webhook": "https://a:b@example.com/x"}, "webhook_env"),
        ({}, "one of webhook and webhook_env"),
        ({"webhook_env": "A", "threshold": {"metric": "loss"}}, "one of below and above"),
        ({"webhook_env": "A", "on": ["finish"]}, "end"),
    ],
)
def test_what_a_recipe_may_not_say(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message) as error:
        NotifyConfig.model_validate(keys)
    assert "slack.com/services" not in str(error.value.errors(include_input=False))


@pytest.mark.slow
def test_typed_a_killed_worker_and_its_restart_are_one_message(tmp_path: Path, webhook: Webhook) -> None:
    """With real workers, a URL in a variable, and code that dies once."""
    shell = Shell(tmp_path)
    shell.env["HOOK"] = webhook.url
    (shell.here / "dies.py").write_text(
        "import os, signal\nfrom pathlib import Path\n\n"
        "def on_step(row):\n"
        f"    once = Path({str(tmp_path / 'once')!r})\n"
        "    if row.step == 4 and not once.exists():\n"
        "        typed = [one.read_bytes() for one in Path('/proc').glob('[0-9]*/cmdline') if one.exists()]\n"
        "        once.write_text(str(any(os.environ['HOOK'].encode() in words for words in typed)))\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    keys = ["code=dies.py", "train.max_steps=6", "checkpoint.every_steps=2", "notify.threshold={above: 0.0}"]
    unset = shell("--local", "--run-url", "run", *keys, "notify.webhook_env=HOOKS")
    assert unset.returncode == 2 and "HOOKS is not set" in unset.stderr
    done = shell("--local", "--run-url", "run", *keys, "notify.webhook_env=HOOK", timeout=120)
    assert done.returncode == 0, done.stderr
    until = time.monotonic() + 15
    while len(webhook.told) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert sorted(webhook.events) == ["end", "threshold"]
    assert webhook.told[-1]["attempt"] == 1 and webhook.told[-1]["loss"] > 0
    assert (tmp_path / "once").read_text() == "False", "no process has the URL among its words"
    assert not any(webhook.url in text for text in (done.stdout, done.stderr))
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(webhook.url.encode() in text for text in texts), "the URL is in no file of the run or of the user"


def test_a_place_that_takes_no_variables_along_is_told_of_and_not_asked_here(tmp_path: Path) -> None:
    keys = {"notify.webhook_env": "HOOK_ELSEWHERE", "train.device": "cpu"}
    cluster = tmp_path / "far.yaml"
    cluster.write_text(yaml.safe_dump({"name": "far", "scheduler": "ray", "ray": {"address": "http://127.0.0.1:1"}}))
    ready = make_ready(Request("quickstart", str(cluster), keys, run_url=str(tmp_path / "run")), dry_run=True)
    (note,) = [note for note in ready.plan.notes if "notify" in note]
    assert "HOOK_ELSEWHERE must be set on the nodes" in note and "Ray" in note
    with pytest.raises(RecipeErrors, match="HOOK_ELSEWHERE is not set"):
        make_ready(Request("quickstart", "local", keys, run_url=str(tmp_path / "run")), dry_run=True)
