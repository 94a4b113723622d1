"""The chat page in a real browser: what a reader does and sees, before a scripted server and before the real one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launchyard.model.serve.http.app import Access
from tests.model.serve.http.browser import SHIFT, Tab
from tests.model.serve.http.scripted import Handler, Held, Scripted, ending, event, says, scripted
from tests.model.serve.served import chat_model, served

pytestmark = pytest.mark.browser
LAST = ".turn:last-child"
ANSWER = f"document.querySelector('{LAST} .answer')?.textContent"
IDLE = "document.querySelector('#stop')?.hidden"
KEY_ASKED = "document.querySelector('#unlock')?.open"


@dataclass
class Site:
    """A server behind which the page must work. idle: waits until no text is being written there."""

    url: str
    idle: Callable[[], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(params=["scripted", "real"])
def site(request: pytest.FixtureRequest, folder: Path) -> Iterator[Site]:
    if request.param == "scripted":
        with scripted() as one:
            one.key = "sesame"
            one.script = Held(endless=True)
            yield Site(one.url, lambda: wait(one.gone))
    else:
        with served(folder, access=Access(keys=["sesame"])) as other:
            yield Site(f"{other.url}/", lambda: idle(other.server.service.engine))


def wait(event: Any) -> None:
    assert event.wait(10), "the server never saw the client go"


def idle(engine: Any) -> None:
    """Of the real server."""
    end = time.monotonic() + 10
    while engine.n_running or engine.n_waiting:
        assert time.monotonic() < end, "the slot was not freed"
        time.sleep(0.01)


def ask(tab: Tab, text: str) -> None:
    tab.value("document.querySelector('#prompt').focus()")
    tab.type(text)
    tab.press("Enter")


def told(tab: Tab, text: str = "Hi") -> str:
    """The whole answer."""
    ask(tab, text)
    tab.wait(f"{IDLE} && document.querySelector('{LAST} .facts').textContent !== ''")
    return str(tab.value(ANSWER))


def change(tab: Tab, name: str, value: str) -> None:
    """A setting."""
    script = f"const e = document.querySelector('#{name}'); e.value = {json.dumps(value)};"
    tab.value(f"(() => {{ {script} e.dispatchEvent(new Event('input', {{bubbles: true}})); }})()")


def shown(tab: Tab, selector: str) -> bool:
    script = f"document.querySelector({json.dumps(selector)})?.checkVisibility()"
    return bool(tab.value(script))


# -- before both servers --
def test_it_asks_for_the_key_streams_and_stops(site: Site, tab: Tab) -> None:
    tab.open(site.url)
    tab.wait(KEY_ASKED)
    tab.type("wrong")
    tab.press("Enter")
    tab.wait(f"{KEY_ASKED} && document.querySelector('#why').textContent.includes('does not know')")
    tab.value("document.querySelector('#key').value = ''")
    tab.type("sesame")
    tab.press("Enter")
    tab.wait(f"!{KEY_ASKED} && document.title !== 'Chat'")
    change(tab, "temperature", "0")

    ask(tab, "Count to a million")
    tab.wait(f"{ANSWER}.length > 20")
    assert not tab.value(IDLE)
    tab.press("Escape")
    site.idle()
    tab.wait(IDLE)
    assert tab.value(f"document.querySelector('{LAST} .note').textContent") == "Stopped."
    assert len(tab.value(ANSWER)) > 20, "what had come is kept"
    assert [url for url in tab.asked_urls() if not url.startswith((site.url, "data:"))] == []
    kept = tab.value("[JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie]")
    assert ["sesame" in text for text in kept] == [False, True, False]


# -- an answer and its end --
def test_text_shows_as_it_comes_and_is_counted(page: Tab, server: Scripted) -> None:
    held = server.script = Held(["One ", "two ", "three"])
    ask(page, "Count")
    held.let()
    page.wait(f"{ANSWER} === 'One '")
    held.let(2)
    page.wait(IDLE)
    assert page.value(ANSWER) == "One two three"
    facts = page.value(f"document.querySelector('{LAST} .facts').textContent")
    assert facts.startswith("3 tokens · ") and "tokens/s" in facts and facts.endswith("context 23 of 2,048")
    (body,) = server.asked
    assert body == {
        "model": "stand-in-7b",
        "messages": [{"role": "user", "content": "Count"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_stopped_answer_is_part_of_the_talk(page: Tab, server: Scripted) -> None:
    server.script = Held(endless=True)
    ask(page, "Go")
    page.wait(f"{ANSWER}.length > 20")
    page.click("#stop")
    wait(server.gone)
    page.wait(IDLE)
    server.script = says("Right")
    told(page, "And now?")
    roles = [(one["role"], one["content"][:4]) for one in server.asked[-1]["messages"]]
    assert roles == [("user", "Go"), ("assistant", "word"), ("user", "And ")]


@pytest.mark.parametrize("leave", ["#new", "reload"])
def test_leaving_an_answer_ends_it(page: Tab, server: Scripted, leave: str) -> None:
    server.script = Held(endless=True)
    ask(page, "Go")
    page.wait(f"{ANSWER}.length > 20")
    if leave == "reload":
        page.reload()
    else:
        page.click(leave)
    wait(server.gone)
    page.wait(f"{IDLE} && document.title !== 'Chat'")
    assert page.value("document.querySelectorAll('.turn').length") == (1 if leave == "reload" else 0)
    assert "word word" in page.value("JSON.stringify(localStorage)"), "what had come is kept"


def test_a_busy_server_says_when_to_retry(page: Tab, server: Scripted) -> None:
    server.script = lambda handler: handler.error(429, "all slots are taken", Retry_After="1")
    ask(page, "Hi")
    retry = f"document.querySelector('{LAST} .retry').textContent"
    page.wait(f"{retry} === 'Retry in 1 s'")
    assert page.value(f"document.querySelector('{LAST} .error').textContent") == "all slots are taken"
    page.wait(f"{retry} === 'Retry'")
    server.script = says("Now")
    page.click(f"{LAST} .retry")
    page.wait(f"{ANSWER} === 'Now' && {IDLE}")
    assert not shown(page, f"{LAST} .error")
    assert server.asked[-1] == server.asked[0]


def cut(handler: Handler) -> None:
    handler.begin()
    handler.piece("Half")


def broken(handler: Handler) -> None:
    cut(handler)
    handler.raw(event({"error": {"message": "the engine <b>fell</b>", "type": "server_error"}}) + b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("script", "answer", "error"),
    [
        (broken, "Half", "the engine <b>fell</b>"),
        (cut, "Half", "The connection ended before the answer did."),
        (lambda handler: handler.error(400, "too <i>long"), "", "too <i>long"),
        (lambda handler: handler.error(503, "it stops", Retry_After="1"), "", "it stops"),
        (lambda handler: handler.give(b"<h1>Bad gateway", status=502, headers={}), "", "The server answers 502."),
        (lambda handler: handler.connection.shutdown(socket.SHUT_RDWR), "", "The server cannot be reached."),
    ],
)
def test_an_error_is_told_and_what_had_come_is_kept(
    page: Tab, server: Scripted, script: Callable[[Handler], None], answer: str, error: str
) -> None:
    server.script = script
    ask(page, "Hi")
    page.wait(f"{IDLE} && document.querySelector('{LAST} .error')?.textContent === {json.dumps(error)}")
    assert page.value(ANSWER) == answer
    server.script = says("Fine")
    assert told(page, "Again") == "Fine"
    assert [one["content"] for one in server.asked[-1]["messages"]] == ["Hi", "Half", "Again"] if answer else ["Again"]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_characters_that_come_byte_by_byte_are_whole(page: Tab, server: Scripted, newline: bytes) -> None:
    text = "naïve 你好 👩‍👩‍👧‍👦 😀 \u2028 é"
    raw = (event({"choices": [{"delta": {"content": text}}]}) + ending(3)).replace(b"\n", newline)

    def script(handler: Handler) -> None:
        handler.begin()
        for number in range(len(raw)):
            handler.raw(raw[number : number + 1])
            if number % 8 == 0:
                time.sleep(0.001)  # so that pieces are read apart

    server.script = script
    assert told(page) == text


def test_a_server_that_has_another_model_now_is_asked_for_that(page: Tab, server: Scripted) -> None:
    server.name = "another"
    server.script = lambda handler: handler.error(404, "there is no such model")
    ask(page, "Hi")
    page.wait("document.querySelector('#name').textContent === 'another'")
    server.script = says("I am")
    page.click(f"{LAST} .retry")
    page.wait(f"{IDLE} && {ANSWER} === 'I am'")
    assert [body["model"] for body in server.asked] == ["stand-in-7b", "another"]


def test_who_gives_no_key_is_told_and_asked_again_when_it_matters(tab: Tab, server: Scripted) -> None:
    server.key = "sesame"
    tab.open(server.url)
    tab.wait(KEY_ASKED)
    tab.press("Escape")
    tab.wait("document.querySelector('#name').textContent.includes('a key is needed')")
    ask(tab, "Hi")
    tab.wait(KEY_ASKED)
    tab.press("Escape")
    tab.wait(f"{IDLE} && document.querySelector('{LAST} .error').textContent.includes('a key is needed')")
    tab.click(f"{LAST} .retry")
    tab.wait(KEY_ASKED)
    tab.type("sesame")
    tab.press("Enter")
    tab.wait(f"{IDLE} && {ANSWER} === 'Hello' && document.title === 'stand-in-7b'")


# -- keys --
def test_enter_sends_and_other_enters_do_not(page: Tab, server: Scripted) -> None:
    page.press("Enter")
    page.type("  ")
    page.press("Enter")
    page.value("document.querySelector('#prompt').value = ''")
    page.type("one")
    page.press("Enter", SHIFT)
    page.type("two")
    page.ask("Input.imeSetComposition", text="に", selectionStart=1, selectionEnd=1)
    composing = "{key: 'Enter', isComposing: true, bubbles: true, cancelable: true}"
    page.value(f"document.querySelector('#prompt').dispatchEvent(new KeyboardEvent('keydown', {composing}))")
    safari = "{key: 'Enter', keyCode: 229, bubbles: true, cancelable: true}"
    page.value(f"document.querySelector('#prompt').dispatchEvent(new KeyboardEvent('keydown', {safari}))")
    page.type("日")
    assert server.asked == []
    page.press("Enter")
    page.wait(f"{IDLE} && {ANSWER} === 'Hello'")
    assert [body["messages"][0]["content"] for body in server.asked] == ["one\ntwo日"]
    assert page.value("document.querySelector('#prompt').value") == ""


def test_settings_and_system_message_are_sent_if_given(page: Tab, server: Scripted) -> None:
    given = {"temperature": 0, "top_p": 0.9, "max_tokens": 7, "seed": 0}
    told(page)
    for name, value in given.items():
        change(page, name, str(value))
    change(page, "system", "Be <b>kind</b>")
    page.reload()
    page.wait("document.title !== 'Chat'")
    told(page)
    assert not set(given) & set(server.asked[0]) and server.asked[0]["messages"][0]["role"] == "user"
    assert {name: server.asked[1][name] for name in given} == given
    assert server.asked[1]["messages"][0] == {"role": "system", "content": "Be <b>kind</b>"}


def test_the_last_turn_can_be_tried_again_and_edited(page: Tab, server: Scripted) -> None:
    told(page, "First")
    told(page, "Second")
    page.type("a draft")
    page.click(f"{LAST} .retry")
    page.wait(f"{IDLE} && {ANSWER} === 'Hello'")
    assert server.asked[2] == server.asked[1]
    page.click(f"{LAST} .edit")
    assert shown(page, "#editing")
    page.press("Escape")
    assert not shown(page, "#editing") and page.value("document.querySelector('#prompt').value") == "a draft"
    page.click(f"{LAST} .edit")
    page.click(f"{LAST} .retry")
    page.wait(f"{IDLE} && {ANSWER} === 'Hello'")
    assert not shown(page, "#editing") and server.asked[3] == server.asked[1]
    page.click(f"{LAST} .edit")
    assert told(page, ", edited") == "Hello"
    assert [one["content"] for one in server.asked[4]["messages"]] == ["First", "Hello", "Second, edited"]
    assert page.value("document.querySelectorAll('.turn').length") == 2
    assert not shown(page, ".turn .retry") and shown(page, f"{LAST} .retry")


def test_chats_are_kept_until_they_are_deleted(page: Tab, server: Scripted) -> None:
    told(page, "First")
    page.click("#new")
    assert page.value("document.querySelectorAll('.turn').length") == 0
    told(page, "Second")
    page.reload()
    page.wait("document.querySelector('.ask')?.textContent === 'Second'")
    page.click("#show-chats")
    assert page.value("[...document.querySelectorAll('.open')].map(e => e.textContent)") == ["Second", "First"]
    page.click("li:last-child .open")
    page.wait("document.querySelector('.ask')?.textContent === 'First'")
    page.click("#show-chats")
    page.click("li:last-child .drop")
    assert page.value("document.querySelectorAll('.turn').length") == 0, "the chat that was open is gone"
    page.value("window.confirm = () => true")
    page.click("#clear")
    assert "Second" not in page.value("JSON.stringify(localStorage)")
    assert not shown(page, "#clear")


@pytest.mark.parametrize("secure", [True, False], ids=["clipboard", "plain HTTP"])
def test_text_can_be_copied(page: Tab, server: Scripted, secure: bool) -> None:
    server.script = says("```py\nx = '<b>'\n```\n**so**")
    told(page)
    took = "navigator.clipboard.writeText = async text => { window.took = text; }" if secure else (
        "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
        "document.addEventListener('copy', () => { window.took = String(document.activeElement.value); })"
    )  # fmt: skip
    page.value(f"(() => {{ {took} }})()")
    for selector, text in ((f"{LAST} .copy", "```py\nx = '<b>'\n```\n**so**"), (".code button", "x = '<b>'")):
        page.click(selector)
        page.wait(f"document.querySelector('{selector}').textContent === 'Copied'")
        assert page.value("window.took") == text
