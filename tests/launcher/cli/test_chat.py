"""`launch chat`: lines from a pipe, one message, a real terminal; the file that remembers, and mistakes."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path

import pytest

from launchyard.host.folders import user_state_folder
from launchyard.launcher.cli.chat.lines import MessageReader
from launchyard.launcher.cli.chat.screen import ChatScreen
from launchyard.launcher.cli.main import main
from launchyard.model.serve.conversation import Dialogue
from launchyard.model.weights.load import load
from launchyard.training.data.instruct.shapes import read_conversations
from tests.model.serve.served import TEMPLATE, chat_model

Chat = Callable[..., tuple[int, str, str]]
LIKELIEST = ("--temperature", "0", "--max-new-tokens", "8")
READY = "\x1b[?2004h> "  # readline waits for a line
TALK = ("hello there", "the tale of the user, naïve", "and the end?")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(chat_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def chat(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Chat:
    """The real command with the lines of a pipe: its exit code, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, typed: str | bytes | io.TextIOBase = "", of: str = model) -> tuple[int, str, str]:
        raw = typed.encode() if isinstance(typed, str) else typed
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)) if isinstance(raw, bytes) else raw)
        with pytest.raises(SystemExit) as ended:
            main(["chat", of, *words])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def expected(model: str) -> list[str]:
    """The answers to TALK."""
    dialogue = Dialogue(load(model))
    return ["".join(dialogue.answer(text, temperature=0.0, max_new_tokens=8)) for text in TALK]


def rows(path: str) -> list[list[dict[str, object]]]:
    return [json.loads(line)["messages"] for line in Path(path).read_text().splitlines()]


def test_each_line_of_a_pipe_is_answered(chat: Chat, expected: list[str]) -> None:
    code, out, err = chat(*LIKELIEST, typed="\n\n".join(TALK))
    assert (code, out) == (0, "".join(f"{answer}\n" for answer in expected))
    assert set(err.splitlines()) <= {"cut: max_new_tokens is 8"}


def test_a_line_of_json_for_each_line(chat: Chat, expected: list[str]) -> None:
    _, out, _ = chat(*LIKELIEST, "--json", "--context-length", "200", typed="\n".join(TALK))
    facts = [json.loads(line) for line in out.splitlines()]
    assert [one["text"] for one in facts] == expected
    assert facts[0]["n_reused"] == 0 < facts[1]["n_reused"] and facts[2]["context_length"] == 200


def test_one_message(chat: Chat, expected: list[str]) -> None:
    code, out, err = chat(*LIKELIEST, "--message", TALK[0])
    assert (code, out) == (0, f"{expected[0]}\n")
    assert re.search(r"8 tokens · [\d.]+ tokens/s · context 21/4096", err)
    assert chat(*LIKELIEST, "--message", "-", typed=f"{TALK[0]}\n")[1] == out
    _, out, _ = chat(*LIKELIEST, "--message", TALK[0], "--json", "--seed", "4")
    facts = json.loads(out)
    assert (facts["text"], facts["seed"], facts["ended"], facts["n_new"]) == (expected[0], 4, "length", 8)


def test_words_behind_a_slash(chat: Chat, expected: list[str]) -> None:
    typed = "\n".join(
        [
            *(TALK[0], TALK[1], "/undo", "/history", TALK[1], "/retry", "/tokens", "/system be brief", '/system ""'),
            *("/set top-k=3", "/set temperature=none", "/set", "/reset", "/set temperature=0", TALK[0], "/help"),
            *("/multi", TALK[0], ".", "//slashed", "so", ".", "/history", "/quit", "never"),
        ]
    )
    code, out, err = chat(*LIKELIEST, typed=typed)
    assert code == 0
    shown = f"user: {TALK[0]}\nassistant: {expected[0]}\n"
    assert "\nuser: /slashed\nso\nassistant: " in out and "never" not in out
    answers = [expected[0], expected[1], shown.rstrip("\n"), expected[1], expected[1], expected[0]]
    assert out.startswith("".join(f"{answer}\n" for answer in answers))
    for said in (
        f"taken back: {TALK[1]}",
        r"\d+ tokens were said; the context has 4096, of which 8 are kept",
        "system: be brief\nsystem: no message",
        "temperature=default  top_k=3",
        "a new conversation",
        r"/undo +take the last message",
        "messages go on up to a line of a single dot",
    ):
        assert re.search(said, err), said


def test_a_message_of_several_lines() -> None:
    def messages(typed: str, *, multiline: bool) -> list[str]:
        lines = iter(typed.split("\n"))
        reader = MessageReader(lambda prompt: next(lines, None), multiline=multiline)
        return list(iter(reader.read, None))  # type: ignore[arg-type]

    assert messages("one\ntwo \\\n\\\nthree\nfour\\", multiline=False) == ["one", "two \n\nthree", "four"]
    assert messages("one\n\ntwo\\\n.\n/undo\nthree", multiline=True) == ["one\n\ntwo\\", "/undo", "three"]


@pytest.mark.parametrize("words", [("--message", "tell a tale"), ()])
def test_an_interrupt_ends_a_script_and_keeps_what_was_written(
    words: tuple[str, ...], chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = ChatScreen.piece
    shown: list[str] = []

    def interrupted(screen: ChatScreen, text: str) -> None:
        shown.append(text)
        show(screen, text)
        if len(shown) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ChatScreen, "piece", interrupted)
    options = ("--temperature", "0", "--max-new-tokens", "900", "--save", "talk.jsonl", *words)
    code, out, err = chat(*options, typed="tell a tale\nnever")
    assert (code, out) == (130, "".join(shown) + "\n")
    assert "stopped: what was written is kept" in err and len(shown) < 5
    assert rows("talk.jsonl")[0][1:] == [{"role": "assistant", "content": "".join(shown), "weight": 0}]


class Watched(io.StringIO):
    """Lines of which each is read only after something was looked at."""

    def __init__(self, lines: list[str], look: Callable[[], None]) -> None:
        super().__init__("\n".join(lines))
        self._look = look

    def readline(self, size: int | None = -1, /) -> str:
        self._look()
        return super().readline(-1 if size is None else size)


def test_a_transcript_is_whole_after_every_turn(chat: Chat, expected: list[str]) -> None:
    """And a training can read it; it does not learn that a cut answer is at its end."""
    seen: list[list[list[dict[str, object]]]] = []
    Path("talks.jsonl").write_text('{"messages": [{"role": "user", "content": "of others"}]}')
    os.chmod("talks.jsonl", 0o640)
    words = (*LIKELIEST, "--save", "talks.jsonl", "--system", "be brief")
    code, _, err = chat(
        *words, typed=Watched([*TALK, "/undo", "/reset", "x"], lambda: seen.append(rows("talks.jsonl")))
    )
    assert code == 0, err
    n_messages = [[len(row) for row in state] for state in seen]
    assert n_messages == [[1], [1, 3], [1, 5], [1, 7], [1, 5], [1, 5], [1, 5, 3]]
    assert stat.S_IMODE(os.stat("talks.jsonl").st_mode) == 0o640
    read = list(read_conversations(["talks.jsonl"]))
    turns = [(turn.role, turn.content, turn.trained) for turn in read[1].turns]  # type: ignore[union-attr]
    assert [(role, text) for role, text, _ in turns] == [(m["role"], m["content"]) for m in seen[-1][1]]
    assert not any(trained for _, _, trained in turns)
    assert [message.get("weight") for message in seen[-1][1]] == [None, None, 0, None, 0]


def test_a_conversation_goes_on_where_it_was_saved(chat: Chat, expected: list[str]) -> None:
    chat(*LIKELIEST, "--save", "talk.jsonl", typed=TALK[0])
    assert stat.S_IMODE(os.stat("talk.jsonl").st_mode) == 0o600
    _, out, _ = chat(*LIKELIEST, "--load", "talk.jsonl", "--save", "talk.jsonl", "--message", TALK[1])
    assert out == f"{expected[1]}\n"
    assert [len(row) for row in rows("talk.jsonl")] == [4]
    _, out, _ = chat(*LIKELIEST, typed=f"/load talk.jsonl\n{TALK[2]}\n/save other.jsonl\n/retry")
    assert out == f"{expected[2]}\n" * 2
    assert [len(row) for row in rows("other.jsonl")] == [6]
    assert rows("other.jsonl")[0][:4] == rows("talk.jsonl")[0]


def test_a_style_or_a_template_in_place_of_the_models_own(chat: Chat, tmp_path: Path) -> None:
    plain = str(chat_model(tmp_path / "plain", template=None))
    code, _, err = chat("--message", "hello", of=plain)
    assert code == 2 and "there is no chat template" in err and "--style NAME" in err and "chatml" in err
    Path("own.jinja").write_text(TEMPLATE)
    for words in (("--style", "chatml"), ("--template", "own.jinja")):
        code, out, err = chat(*LIKELIEST, *words, "--message", "hello", of=plain)
        assert code == 0 and out.strip(), err


@pytest.mark.parametrize(
    ("words", "typed", "said"),
    [
        (("--style", "smiling"), "hello", "there is no prompt style 'smiling'"),
        (("--style", "chatml", "--template", "own.jinja"), "hello", "not both"),
        (("--template", "none.jinja"), "hello", "none.jinja"),
        (("--message", ""), "", "the message is empty"),
        (("--message", "x", "--multiline"), "", "--multiline is for messages"),
        (("--message", "no" * 99, "--context-length", "60"), "", "the message takes"),
        (("--max-new-tokens", "60", "--context-length", "60"), "hello", "must leave some"),
        (("--top-p", "7"), "hello", "top_p is 7.0"),
        (("--load", "none.jsonl"), "hello", "none.jsonl: No such file"),
        (("--load", "own.jinja"), "hello", "own.jinja:1 is not JSON"),
        (("--load", "strange.jsonl"), "hello", "message 1 has the role 'judge'"),
        (("--save", "own.jinja"), "hello", "own.jinja:1 is not JSON"),
        (("--save", "."), "hello", "directory"),
        ((), b"\xff\xfe\n", "line 1 of the input, or one soon after it, is not UTF-8"),
        ((), "/rset", "there is no /rset; did you mean /reset"),
        ((), "/undo", "nothing has been said"),
        ((), "/undo all", "/undo takes nothing"),
        ((), "/save", "/save needs a FILE"),
        ((), "/set heat=3", "KEY one of temperature"),
        ((), "/set temprature=3", "did you mean temperature?"),
        ((), "/set top_k=many", "top_k is 'many'; it must be a whole number"),
        ((), "/set top_p=2", "top_p is 2.0"),
        ((), "/set max_new_tokens=5000", "must leave some"),
    ],
)
def test_a_mistake_is_one_clear_error(words: tuple[str, ...], typed: str | bytes, said: str, chat: Chat) -> None:
    Path("own.jinja").write_text("{{ messages }}")
    Path("strange.jsonl").write_text('{"messages": [{"role": "judge", "content": "x"}]}')
    code, out, err = chat(*words, typed=typed)
    assert (code, out, said in err) == (2, "", True), err
    assert Path("own.jinja").read_text() == "{{ messages }}"


class Terminal:
    """A process on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self._shown = b""
        environment = {**os.environ, "TERM": "xterm", "INPUTRC": os.devnull}
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launchyard", "chat", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
            env=environment,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C at the prompt. One that meets readline at work on a key is seen with the next key only: so CPython
        waits, and people press it again.
        """
        self.type("\x03")
        if not select.select([self._ours], [], [], 3)[0]:
            self.type("\x03")

    def until(self, mark: str, *, n_shown: int = 0) -> str:
        """What is shown since the last mark, up to this one, once there are so many bytes."""
        end = time.monotonic() + 30
        while (mark.encode() not in self._shown or len(self._shown) < n_shown) and time.monotonic() < end:
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self._shown += os.read(self._ours, 4096)
                except OSError:  # nobody writes there any more
                    break
        text = self._shown.decode(errors="replace")
        before, found, _ = text.partition(mark) if mark else (text, text, "")
        assert found, text
        self._shown = self._shown.partition(mark.encode())[2] if mark else b""
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(model: str) -> Iterator[Terminal]:
    found = Terminal(model, *LIKELIEST, "--save", f"{model}.jsonl")
    yield found
    found.close()


def test_a_terminal(terminal: Terminal, model: str) -> None:
    """A paste is one message, Ctrl-C ends an answer only, and says at the prompt how to leave; Ctrl-D leaves."""
    terminal.until(READY)
    terminal.type("\x1b[200~hello\rthere\x1b[201~\r")
    assert "\x1b[2m8 tokens · " in terminal.until(READY)
    terminal.type("/set max_new_tokens=3000\r")
    terminal.until(READY)
    terminal.type("tell a tale\r")
    terminal.until("\x1b[?2004l\r")
    terminal.until("", n_shown=10)
    terminal.type("\x03")
    assert "stopped: what was written is kept" in terminal.until(READY)
    terminal.type("half a mess")
    terminal.until("half a mess")
    terminal.interrupt()
    assert "Ctrl-C again leaves, and so does Ctrl-D" in terminal.until(READY)
    terminal.type("/hlp\r")
    assert "\x1b[31merror:\x1b[0m there is no /hlp; did you mean /help?" in terminal.until(READY)
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0
    talk = rows(f"{model}.jsonl")[0]
    assert [message["content"] for message in talk[::2]] == ["hello\nthere", "tell a tale"]
    assert talk[3]["weight"] == 0 and talk[3]["content"]
    history = user_state_folder("chat_history.jsonl")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    kept = ["hello\nthere", "/set max_new_tokens=3000", "tell a tale", "/hlp"]
    assert [json.loads(line) for line in history.read_text().splitlines()] == kept
