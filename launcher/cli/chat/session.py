"""One chat in a terminal or a script: a message is answered, a word behind a slash is done. Reads no input."""

from __future__ import annotations

import difflib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, cast

from launchyard.errors import UserError
from launchyard.launcher.cli.chat.lines import MessageReader
from launchyard.launcher.cli.chat.screen import ChatScreen
from launchyard.launcher.cli.chat.transcript import Transcript, read_conversation

if TYPE_CHECKING:
    from launchyard.model.serve.conversation import AnswerOptions, Dialogue, Reply

# Name -> what it takes, and what it does: the text of /help, in its order.
SLASHES = {
    "help": ("", "show this"),
    "reset": ("", "forget all but the system message"),
    "undo": ("", "take the last message and its answer back"),
    "retry": ("", "write another answer to the last message"),
    "system": ("[TEXT]", 'show the system message, or set it; "" for none'),
    "history": ("", "show what was said"),
    "save": ("FILE", "write the conversation there now, and after every turn"),
    "load": ("FILE", "go on with the last conversation of a file"),
    "set": ("[KEY=VALUE]", "show how answers are drawn, or change it; KEY=none for the default"),
    "tokens": ("", "show how full the context is"),
    "multi": ("", "let messages have many lines, up to a line of a single dot; again: one"),
    "quit": ("", "leave; so does Ctrl-D"),
}
SETTINGS: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "repeat_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "penalty_window": int,
    "max_new_tokens": int,
    "seed": int,
}
Settings = dict[str, int | float]


@dataclass
class Session:
    """settings: what was said of those above. says_counts: a line behind each answer."""

    conversation: Dialogue
    screen: ChatScreen
    reader: MessageReader
    settings: Settings = field(default_factory=dict)
    transcript: Transcript | None = None
    says_counts: bool = True
    seconds: float = 0.0  # of the last answer
    _n_left_out: int = 0
    _loaded_row: bytes = b""

    def handle(self, text: str) -> Reply | None:
        """Answer a message, or do what a word behind a slash says. EOFError to leave; ValueError and UserError."""
        if not text.strip():
            return None
        if text.startswith("/") and not text.startswith("//"):
            self._obey(text)
            return None
        return self.answer(text.removeprefix("/") if text.startswith("//") else text)

    def answer(self, text: str) -> Reply:
        return self._show(self.conversation.answer(text, **answer_options(self.settings)))

    def load(self, path: str) -> None:
        messages, row = read_conversation(path)
        self.conversation.load(messages)
        self._begin_row(row)
        self.screen.note(f"{len(messages)} messages of {path}")
        if messages[-1].get("role") == "user":
            self.screen.note("the last one has no answer: /retry writes it")

    def save_to(self, path: str) -> None:
        """Now, if anything was said, and after every turn."""
        self.transcript = Transcript(path)
        self.transcript.begin_row(self._loaded_row)
        self.transcript.save(self.conversation.messages)

    def _show(self, answer: Reply) -> Reply:
        if answer.n_left_out > self._n_left_out:
            self.screen.note(f"the oldest {answer.n_left_out} messages have no room: the model does not see them")
        self._n_left_out = answer.n_left_out
        began = time.perf_counter()
        try:
            with _stopped_by_interrupts(answer):
                for piece in answer:
                    self.screen.piece(piece)
        except KeyboardInterrupt:
            answer.finish()
        self.seconds = time.perf_counter() - began
        self.screen.end_answer()
        self._save()
        self._say_counts(answer)
        return answer

    def _say_counts(self, answer: Reply) -> None:
        if answer.ended == "cancelled":
            kept = "what was written is kept" if answer.was_kept else "nothing was written, so the message is not kept"
            self.screen.note(f"stopped: {kept}")
        elif answer.ended == "length":
            self.screen.note(f"cut: max_new_tokens is {answer.n_new}")
        if not self.says_counts:
            return
        used = answer.n_prompt + answer.n_new
        parts = [
            f"{answer.n_new} tokens",
            f"{answer.n_new / max(self.seconds, 1e-9):.1f} tokens/s",
            f"context {used}/{self.conversation.length}",
            *filter(None, [self.conversation.engine.decoding.words]),
            *([f"{answer.n_left_out} messages left out"] if answer.n_left_out else []),
        ]
        self.screen.note(" · ".join(parts))

    def _begin_row(self, row: bytes = b"") -> None:
        """The conversation is another one, which stands in a file already or begins."""
        self._loaded_row = row
        if self.transcript is not None:
            self.transcript.begin_row(row)

    def _save(self) -> None:
        if self.transcript is not None:
            self.transcript.save(self.conversation.messages)

    # -- words behind a slash ------------------------------------------------------------------------------------------
    def _obey(self, text: str) -> None:
        name, *rest = text[1:].split(maxsplit=1) or [""]
        if name not in SLASHES:
            near = difflib.get_close_matches(name, SLASHES, n=3, cutoff=0.5)
            meant = f"; did you mean {' or '.join(f'/{one}' for one in near)}?" if near else ""
            raise UserError(f"there is no /{name}{meant}", hint="/help lists them; // begins a message with a slash")
        takes, _ = SLASHES[name]
        if rest and not takes:
            raise UserError(f"/{name} takes nothing behind it, not {rest[0]!r}")
        if not rest and takes and not takes.startswith("["):
            raise UserError(f"/{name} needs a {takes}")
        getattr(self, f"_do_{name}")(*rest)

    def _do_help(self) -> None:
        width = max(len(f"{name} {takes}") for name, (takes, _) in SLASHES.items())
        lines = [f"  /{f'{name} {takes}'.ljust(width)}  {does}" for name, (takes, does) in SLASHES.items()]
        lines += [
            "A line that ends in a backslash goes on in the next one, and a paste is one message.",
            "Ctrl-C stops an answer. A message that begins with a slash is typed with two.",
        ]
        self.screen.note("\n".join(lines))

    def _do_reset(self) -> None:
        self.conversation.clear()
        self._n_left_out = 0
        self._begin_row()
        self.screen.note("a new conversation")

    def _do_undo(self) -> None:
        taken = self.conversation.undo()
        self._save()
        self.screen.note(f"taken back: {_beginning(taken[0].get('content'))}")

    def _do_retry(self) -> None:
        self._show(self.conversation.retry(**answer_options(self.settings)))

    def _do_system(self, text: str | None = None) -> None:
        if text is not None:
            self.conversation.set_system(None if text.strip() in ('""', "''") else text)
            self._save()
        self.screen.note(f"system: {self.conversation.system or 'no message'}")

    def _do_history(self) -> None:
        if not self.conversation.messages:
            self.screen.note("nothing has been said yet")
        for message in self.conversation.messages:
            self.screen.piece(f"{message.get('role')}: {message.get('content') or ''}\n")

    def _do_load(self, path: str) -> None:
        self.load(path)

    def _do_save(self, path: str) -> None:
        self.save_to(path)
        self.screen.note(f"saved in {path}, from now on after every turn")

    def _do_set(self, text: str | None = None) -> None:
        if text is not None:
            key, value = _setting(text)
            changed = {name: kept for name, kept in self.settings.items() if name != key}
            if value is not None:
                changed[key] = value
            self.conversation.check(**answer_options(changed))
            self.settings = changed
        own = self.conversation.model.sampling_rules
        defaults = {key: f"default ({rule})" for key, rule in own.items()}
        self.screen.note("  ".join(f"{key}={self.settings.get(key, defaults.get(key, 'default'))}" for key in SETTINGS))

    def _do_tokens(self) -> None:
        room = self.conversation.check(**answer_options(self.settings))
        self.screen.note(
            f"{self.conversation.n_tokens} tokens were said; the context has {self.conversation.length}, of which "
            f"{self.conversation.length - room} are kept for the next answer"
        )

    def _do_multi(self) -> None:
        self.reader.multiline = not self.reader.multiline
        how = "go on up to a line of a single dot" if self.reader.multiline else "are one line each"
        self.screen.note(f"messages {how}")

    def _do_quit(self) -> None:
        raise EOFError


def answer_options(settings: Settings) -> AnswerOptions:
    """A top_k of 0 keeps all tokens."""
    return cast(
        "AnswerOptions", {key: None if (key, value) == ("top_k", 0) else value for key, value in settings.items()}
    )


def _setting(text: str) -> tuple[str, int | float | None]:
    """A key, and None for its default."""
    name, equals, value = (part.strip() for part in text.partition("="))
    key = name.lower().replace("-", "_")
    if key not in SETTINGS or not equals:
        near = difflib.get_close_matches(key, SETTINGS, n=1)
        meant = f"; did you mean {near[0]}?" if near and near[0] != key else ""
        raise UserError(f"/set takes KEY=VALUE with KEY one of {', '.join(SETTINGS)}, not {text!r}{meant}")
    if value.lower() == "none":
        return key, None
    try:
        return key, SETTINGS[key](value)
    except ValueError:
        kind = "a whole number" if SETTINGS[key] is int else "a number"
        raise UserError(f"{key} is {value!r}; it must be {kind}, or none for the default") from None


def _beginning(content: object) -> str:
    text = " ".join(str(content).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


@contextmanager
def _stopped_by_interrupts(answer: Reply) -> Iterator[None]:
    """Ctrl-C stops an answer before its next token, and a second one in the middle of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        if answer.is_stopping:
            raise KeyboardInterrupt
        answer.stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
