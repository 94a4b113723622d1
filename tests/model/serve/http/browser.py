"""A headless Chromium, spoken to over a pipe (its DevTools protocol), and tabs of it that share no storage."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio")
# Chromium reads commands on descriptor 3 and writes to 4; bash moves ours there.
_MOVE = 'read_from=$1; write_to=$2; shift 2; exec "$@" 3<&"$read_from" 4>&"$write_to"'
_KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}
SHIFT = 8
SECONDS = 20.0  # after which an answer will not come any more


class Chromium:
    """Commands and events of one browser process."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self._write_to = write_to
        self._read_from = read_from
        self._news = threading.Condition()
        self._answers: dict[int, dict[str, Any]] = {}
        self._sent = 0
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._read_from, 1 << 16):
            *messages, rest = (rest + piece).split(b"\0")
            with self._news:
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._answers[message["id"]] = message
                    else:
                        self.events.append(message)
                self._news.notify_all()

    def ask(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        with self._news:
            self._sent += 1
            number = self._sent
            message = {"id": number, "method": method, "params": params}
            os.write(self._write_to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
            assert self._news.wait_for(lambda: number in self._answers, SECONDS), f"no answer to {method}"
            answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]


class Tab:
    def __init__(self, chromium: Chromium, session: str) -> None:
        self._chromium = chromium
        self._session = session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        return self._chromium.ask(method, self._session, **params)

    def events(self, method: str) -> list[dict[str, Any]]:
        found = list(self._chromium.events)
        return [one["params"] for one in found if one.get("sessionId") == self._session and one["method"] == method]

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url)})")

    def reload(self) -> None:
        before = len(self.events("Page.loadEventFired"))
        self.ask("Page.reload")
        end = time.monotonic() + SECONDS
        while len(self.events("Page.loadEventFired")) == before:
            assert time.monotonic() < end, "the page was not loaded again"
            time.sleep(0.01)

    def value(self, script: str) -> Any:
        """Of an expression; of what it resolves to."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = SECONDS) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not self.value(script):
            assert time.monotonic() < end, f"never true: {script}\n{self.value('document.body.innerText')}"
            time.sleep(0.01)

    def type(self, text: str) -> None:
        self.ask("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        code, text = _KEYS[key]
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        """As a pointer does it: what covers the element is hit instead of it."""
        script = "(e => { e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
        script += f"return [r.x + r.width / 2, r.y + r.height / 2]; }})(document.querySelector({json.dumps(selector)}))"
        x, y = self.value(script)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def wheel(self, pixels: int) -> None:
        self.ask("Input.dispatchMouseEvent", type="mouseWheel", x=150, y=300, deltaX=0, deltaY=pixels)

    def resize(self, width: int, height: int) -> None:
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def dark(self, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the console says, apart from answers that are errors."""
        thrown = [str(one["exceptionDetails"]) for one in self.events("Runtime.exceptionThrown")]
        entries = [one["entry"] for one in self.events("Log.entryAdded")]
        return thrown + [str(entry) for entry in entries if entry["source"] != "network"]

    def asked_urls(self) -> list[str]:
        return [one["request"]["url"] for one in self.events("Network.requestWillBeSent")]


@contextmanager
def running_chromium(folder: Path) -> Iterator[Chromium]:
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here")
    read_from, our_write = os.pipe()
    our_read, write_to = os.pipe()
    argv = ["bash", "-c", _MOVE, "bash", str(read_from), str(write_to), found, *_FLAGS]
    argv += [f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, pass_fds=(read_from, write_to), stdout=log, stderr=log)
    os.close(read_from)
    os.close(write_to)
    chromium = Chromium(our_write, our_read)
    try:
        yield chromium
        chromium.ask("Browser.close")
    finally:
        os.close(our_write)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def fresh_tab(chromium: Chromium) -> Iterator[Tab]:
    context = chromium.ask("Target.createBrowserContext")["browserContextId"]
    target = chromium.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
    session = chromium.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    yield Tab(chromium, session)
    chromium.ask("Target.disposeBrowserContext", browserContextId=context)
