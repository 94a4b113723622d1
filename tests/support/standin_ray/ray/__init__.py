"""As much of Ray's interface as the owner of a run uses, without Ray: actors are processes of this machine.

Nodes are what the file nodes.json in $STANDIN_RAY says at the moment; only a test changes it.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from . import exceptions  # noqa: TID253 - ourselves

FOLDER = Path(os.environ["STANDIN_RAY"])
__version__ = "2.60.0"
__all__ = ["exceptions", "get", "get_runtime_context", "init", "kill", "nodes", "remote", "wait"]


def init(**options: Any) -> None:
    pass


def nodes() -> list[dict[str, Any]]:
    return list(json.loads((FOLDER / "nodes.json").read_text()))


def get_runtime_context() -> Any:
    """The owner is on the first node."""
    return SimpleNamespace(get_node_id=lambda: os.environ.get("STANDIN_RAY_NODE") or nodes()[0]["NodeID"])


def remote(what: Any) -> Any:
    return _Remote(what)


class _Remote:
    """A class or a function with its options; remote() starts an actor, or calls the function here."""

    def __init__(self, what: Any) -> None:
        self._what, self._options = what, dict[str, Any]()

    def options(self, **options: Any) -> _Remote:
        self._options = options
        return self

    def remote(self, *words: Any) -> Any:
        if inspect.isclass(self._what):
            strategy = self._options["scheduling_strategy"]
            return _Actor(self._what, strategy.placement_group.node_ids[strategy.placement_group_bundle_index])
        done: futures.Future[Any] = futures.Future()
        done.set_result(self._what(*words))
        return done


class _Actor:
    """A process that answers one call after another, in lines of JSON."""

    def __init__(self, kind: type, node_id: str) -> None:
        bad = FOLDER / "bad.json"
        self._is_on_bad_node = bad.exists() and node_id in json.loads(bad.read_text())
        ours, theirs = os.pipe()
        argv = [sys.executable, "-m", "ray.actor", kind.__module__, kind.__qualname__, str(theirs)]
        env = {**os.environ, "STANDIN_RAY_NODE": node_id}
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, env=env, pass_fds=[theirs])
        os.close(theirs)
        self._answers = os.fdopen(ours)
        self._turn = threading.Lock()

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *words: self._call(method, words))

    def _call(self, method: str, words: tuple[Any, ...]) -> futures.Future[Any]:
        done: futures.Future[Any] = futures.Future()
        if self._is_on_bad_node:
            done.set_exception(exceptions.RayError("Failed to set up runtime environment.\nno space left"))
            return done

        def ask() -> None:
            with self._turn:
                try:
                    assert self.process.stdin is not None
                    self.process.stdin.write(json.dumps([method, words]).encode() + b"\n")
                    self.process.stdin.flush()
                    line = self._answers.readline()
                except (OSError, ValueError):
                    line = ""
            if line:
                done.set_result(json.loads(line))
            else:
                died = "The actor died unexpectedly before finishing this task.\n\tclass_name: Agent"
                done.set_exception(exceptions.ActorDiedError(died))

        threading.Thread(target=ask, daemon=True).start()
        return done


def wait(calls: list[Any], *, num_returns: int = 1, timeout: float | None = None) -> tuple[list[Any], list[Any]]:
    assert calls
    when = futures.ALL_COMPLETED if num_returns == len(calls) else futures.FIRST_COMPLETED
    done = futures.wait(calls, timeout, return_when=when).done
    return [call for call in calls if call in done], [call for call in calls if call not in done]


def get(call: Any) -> Any:
    return call.result()


def kill(actor: Any, *, no_restart: bool) -> None:
    actor.process.kill()
    actor.process.wait()
