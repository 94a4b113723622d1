"""The options by which commands that write text draw their tokens, and which options exclude each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

import click

from launchyard.launcher.cli.completion import complete_model
from launchyard.model.serve.matrices.names import WEIGHT_FORMS

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel, SamplingOptions
    from launchyard.model.serve.requests import Drafter

_Command = TypeVar("_Command", bound=Callable[..., object])
_N = click.IntRange(min=1)

_OWN = "the model's own, else"
_SAMPLING = (
    click.option(
        "--temperature", default=0.8, metavar="T", help=f"0: always the likeliest token; default: {_OWN} 0.8."
    ),
    click.option(
        "--top-k", default=50, metavar="K", help=f"Draw from the K likeliest; 0: from all; default: {_OWN} 50."
    ),
    click.option("--top-p", type=float, metavar="P", help="Draw from the fewest tokens that together reach P."),
    click.option("--min-p", type=float, metavar="P", help="Draw from tokens with at least P of the likeliest's odds."),
    click.option(
        "--repetition-penalty", default=1.0, metavar="P", help="Divide logits of tokens that were there (1: do not)."
    ),
    click.option(
        "--repeat-penalty", default=0.0, metavar="P", help="Take this part of its size from the logit of such a token."
    ),
    click.option(
        "--presence-penalty", default=0.0, metavar="P", help="Take P from the logits of tokens of the new text."
    ),
    click.option(
        "--frequency-penalty", default=0.0, metavar="P", help="The same, as often as the token is in the new text."
    ),
    click.option("--penalty-window", type=_N, metavar="N", help="Only the last N tokens count for penalties."),
)
_DRAFT = (
    click.option("--draft", metavar="MODEL", shell_complete=complete_model, help="A smaller model guesses tokens."),
    click.option("--lookup", is_flag=True, help="Guess what followed the same tokens before: for repetitive texts."),
    click.option("--guesses", default=4, show_default=True, type=_N, metavar="N", help="Guess N tokens at once."),
)
SAMPLING_NAMES = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "penalty_window",
)  # fmt: skip

weights_option = click.option(
    "--weights",
    default="auto",
    show_default=True,
    type=click.Choice(WEIGHT_FORMS),
    help="What the matrices are while it writes; auto: as stored, or in fp32 where the device is slow with that type.",
)

graphs_option = click.option(
    "--no-graphs", is_flag=True, help="On a GPU: start each operation of a token, where graphs start all at once."
)


generation_config_option = click.option(
    "--generation-config",
    default="auto",
    show_default=True,
    type=click.Choice(("auto", "none")),
    help="auto: what is not said of drawing is as in the model's generation_config.json; none: not so.",
)


def sampling_options(command: _Command) -> _Command:
    """How a token is drawn; `take_sampling` reads them."""
    return _decorated(command, _SAMPLING)


def draft_options(command: _Command) -> _Command:
    """Who guesses tokens; `open_drafter` reads them. They change no text, only how fast it comes."""
    return _decorated(command, _DRAFT)


def _decorated(command: _Command, options: Iterable[Callable[[_Command], _Command]]) -> _Command:
    for option in reversed(list(options)):
        command = option(command)
    return command


def take_sampling(given: dict[str, object]) -> SamplingOptions:
    """Take the options of `sampling_options` out of what click gave -> those that were typed.

    ValueError for one that makes no sense.
    """
    ctx = click.get_current_context()
    values = {name: given.pop(name) for name in SAMPLING_NAMES}
    return checked_sampling({name: value for name, value in values.items() if is_typed(ctx, name)})


def checked_sampling(rules: Mapping[str, object]) -> SamplingOptions:
    """The rules as the model takes them: there no top_k keeps all tokens."""
    from launchyard.model.serve.sampling import Sampling

    sampling = {name: None if (name, value) == ("top_k", 0) else value for name, value in rules.items()}
    Sampling(**sampling)  # type: ignore[arg-type]
    return sampling  # type: ignore[return-value]


def follow_config(model: LoadedModel, generation_config: str, typed: Mapping[str, object]) -> dict[str, object]:
    """Let the model draw by its generation_config.json, or not -> its rules that count beside those that were typed.

    ValueError for one that makes no sense.
    """
    if generation_config == "none":
        model.sampling_rules = {}
    idle = {"top_k", "top_p", "min_p"} if typed.get("temperature") == 0 else set()  # the likeliest is never cut
    return {name: rule for name, rule in model.sampling_rules.items() if name not in {*typed, *idle}}


def rules_in_words(rules: Mapping[str, object]) -> str:
    return f"drawn with {', '.join(f'{name} {rule}' for name, rule in rules.items())}, of its generation_config.json"


def open_drafter(model: LoadedModel, draft: LoadedModel | None, *, lookup: bool) -> Drafter | None:
    from launchyard.model.serve.drafts import PromptLookup

    if draft is not None:
        return model.drafted_by(draft)
    return PromptLookup() if lookup else None


def refuse_together(ctx: click.Context, exclude: Mapping[str, Iterable[str]]) -> None:
    """UsageError, by their names, for options that were typed together with one that excludes them."""
    for name, others in exclude.items():
        if not is_typed(ctx, name):
            continue
        for other in others:
            if is_typed(ctx, other):
                raise click.UsageError(f"{spelling(ctx, name)} cannot go with {spelling(ctx, other)}", ctx)


def refuse_alone(ctx: click.Context, needs: Mapping[str, Iterable[str]]) -> None:
    """UsageError for an option that was typed without any of those it is about."""
    for name, others in needs.items():
        if is_typed(ctx, name) and not any(is_typed(ctx, other) for other in others):
            wanted = " or ".join(spelling(ctx, other) for other in others)
            raise click.UsageError(f"{spelling(ctx, name)} is of use with {wanted} only", ctx)


def is_typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def spelling(ctx: click.Context, name: str) -> str:
    return next(param.opts[0] for param in ctx.command.params if param.name == name)
