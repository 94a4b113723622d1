"""`launch chat`: at a terminal, for one message, or for the lines of a pipe. torch is imported in a body only."""

from __future__ import annotations

import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from launchyard.errors import EXIT_INTERRUPTED, LaunchError
from launchyard.host.folders import user_state_folder
from launchyard.launcher.cli.chat.lines import MessageReader, TypedLines, piped_lines
from launchyard.launcher.cli.chat.screen import ChatScreen
from launchyard.launcher.cli.chat.session import SETTINGS, SLASHES, Session, Settings, answer_options
from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.weights.find import MODEL_HELP, find_model, weights_errors
from launchyard.launcher.cli.weights.sampling_options import (
    follow_config,
    generation_config_option,
    graphs_option,
    is_typed,
    rules_in_words,
    sampling_options,
    weights_option,
)
from launchyard.launcher.cli.weights.template import chat_of, template_options
from launchyard.launcher.format import json_text
from launchyard.launcher.watch.transfer import transfer_bar

if TYPE_CHECKING:
    from launchyard.model.serve.conversation import Reply

_FILE = click.Path(dir_okay=False)


@dataclass(frozen=True)
class _Options:
    """As they were typed, but for how answers are drawn."""

    model: str
    message: str | None
    system: str | None
    style: str | None
    template: str | None
    multiline: bool
    load: str | None
    save: str | None
    context_length: int | None
    device: str
    weights: str
    no_graphs: bool
    generation_config: str
    as_json: bool


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.option("--message", metavar="TEXT", help="Print the answer to this and end; -: all of standard input.")
@click.option("--system", metavar="TEXT", help="What the model is told before all messages.")
@template_options
@click.option("--multiline", is_flag=True, help="A message goes on up to a line of a single dot.")
@click.option("--load", type=_FILE, metavar="FILE", help="Go on with the last conversation of this file.")
@click.option("--save", type=_FILE, metavar="FILE", help="Keep the conversation there, as JSON lines of messages.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Of an answer; default: 1024.")
@sampling_options
@generation_config_option
@click.option("--seed", type=int, metavar="N", help="The same seed writes the same answers; default: a new one.")
@click.option("--context-length", type=click.IntRange(min=2), metavar="N", help="Tokens that it takes; default: 8192.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@weights_option
@graphs_option
@click.option("--json", "as_json", is_flag=True, help="Print each answer and facts about it as JSON.")
def chat(**given: object) -> int | None:
    """Talk with a model."""
    settings = _typed_settings(given)
    options = _Options(**given)  # type: ignore[arg-type]  # click has checked them
    typed = options.message is None and sys.stdin.isatty()
    if typed and options.as_json:
        raise click.UsageError("--json is for --message TEXT, or for messages from a pipe")
    if options.message is not None and options.multiline:
        raise click.UsageError("--multiline is for messages that are typed, or come from a pipe")
    lines = TypedLines(user_state_folder("chat_history.jsonl"), [f"/{name}" for name in SLASHES]) if typed else None
    reader = MessageReader(lines.next_line if lines else piped_lines(sys.stdin), multiline=options.multiline)
    with weights_errors():
        session = _session(options, settings, reader)
        if lines is not None:
            _talk(session, lines)
            return None
        if options.message is not None:
            return _ask(session, options, options.message)
        return _follow_pipe(session, options)


def _typed_settings(given: dict[str, object]) -> Settings:
    """Takes all settings out of what click gave; those that were typed, so that the others stay the chat's own."""
    ctx = click.get_current_context()
    values = {key: given.pop(key) for key in SETTINGS}
    return {key: value for key, value in values.items() if is_typed(ctx, key) and isinstance(value, int | float)}


def _session(options: _Options, settings: Settings, reader: MessageReader) -> Session:
    from launchyard.model.serve.conversation import Dialogue
    from launchyard.model.weights.load import load

    with transfer_bar(f"read {options.model}", sys.stderr) as on_progress:
        place = find_model(options.model)
        graphs = False if options.no_graphs else None
        model = load(place, device=options.device, weights=options.weights, graphs=graphs, on_progress=on_progress)
    rules = follow_config(model, options.generation_config, settings)
    talk = Dialogue(model, chat=chat_of(model, options.style, options.template), context_length=options.context_length)
    settings.setdefault("seed", secrets.randbits(31))
    talk.check(**answer_options(settings))
    says_counts = not options.as_json and (options.message is not None or sys.stdin.isatty())
    session = Session(talk, ChatScreen(silent=options.as_json), reader, settings, says_counts=says_counts)
    if rules and says_counts:
        session.screen.note(rules_in_words(rules))
    if options.load is not None:
        session.load(options.load)
    if options.system is not None:
        talk.set_system(options.system)
    if options.save is not None:
        session.save_to(options.save)
    return session


def _ask(session: Session, options: _Options, message: str) -> int | None:
    answer = session.answer(sys.stdin.read().rstrip("\n") if message == "-" else message)
    if options.as_json:
        click.echo(json_text(_facts(session, answer, options)))
    return EXIT_INTERRUPTED if answer.ended == "cancelled" else None


def _follow_pipe(session: Session, options: _Options) -> int | None:
    """Each line is a message, or a word behind a slash; the first mistake ends it."""
    with suppress(EOFError):  # of /quit
        while (text := session.reader.read()) is not None:
            answer = session.handle(text)
            if answer is None:
                continue
            if options.as_json:
                click.echo(json_text(_facts(session, answer, options), indent=None))
            if answer.ended == "cancelled":
                return EXIT_INTERRUPTED
    return None


def _facts(session: Session, answer: Reply, options: _Options) -> dict[str, object]:
    return {
        "text": answer.text,
        "n_prompt": answer.n_prompt,
        "n_reused": answer.n_reused,
        "n_new": answer.n_new,
        "n_left_out": answer.n_left_out,
        "ended": answer.ended,
        "seed": session.settings.get("seed"),
        "device": str(session.conversation.model.device),
        "decoding": session.conversation.engine.decoding.words or None,
        "seconds": round(session.seconds, 3),
        "context_length": session.conversation.length,
        "model": session.conversation.model.source.folder,
    }


def _talk(session: Session, lines: TypedLines) -> None:
    """Until Ctrl-D, /quit, or Ctrl-C twice at the prompt."""
    screen = session.screen
    talk = session.conversation
    screen.note(f"{talk.model.source.folder} on {talk.model.device}, {talk.length} tokens of context")
    screen.note("/help shows what can be typed; Ctrl-C stops an answer, Ctrl-D leaves")
    interrupted = False
    while True:
        try:
            text = session.reader.read()
        except KeyboardInterrupt:
            click.echo(err=True)
            if interrupted:
                return
            interrupted = True
            screen.note("Ctrl-C again leaves, and so does Ctrl-D")
            continue
        interrupted = False
        if text is None:
            return
        lines.remember(text)
        if lines.problem:
            screen.note(lines.problem)
            lines.problem = ""
        if not _handled(session, text):
            return


def _handled(session: Session, text: str) -> bool:
    """False for a word that leaves."""
    try:
        with weights_errors():
            session.handle(text)
    except EOFError:
        return False
    except KeyboardInterrupt:  # before or behind the writing of an answer
        session.screen.note("\nstopped")
    except LaunchError as error:
        session.screen.problem(str(error), error.hint)
    return True
