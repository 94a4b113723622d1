"""Words that people type in place of a command or of KEY=VALUE, answered with the right ones. Reads no recipe."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence

import click

from launchyard.errors import UserError

# Words of other tools, and ours.
SYNONYMS = {
    "ls": "status", "list": "status", "ps": "status", "runs": "status", "jobs": "status", "squeue": "status",
    "show": "status", "delete": "rm", "remove": "rm", "del": "rm", "clean": "rm", "kill": "cancel",
    "scancel": "cancel", "abort": "cancel", "end": "stop", "pause": "stop", "continue": "resume", "restart": "resume",
    "log": "logs", "tail": "logs", "watch": "status", "explain": "why", "tokenize": "prepare", "convert": "export",
    "sample": "generate", "complete": "completion", "clear": "cache", "check": "doctor",
    "run": "RECIPE", "train": "RECIPE", "start": "RECIPE", "launch": "RECIPE", "submit": "RECIPE",
    "trace": "profile", "profiler": "profile",
    "pretrain": "RECIPE", "grid": "sweep", "search": "sweep", "lr_find": "tune", "options": "keys", "config": "keys",
}  # fmt: skip


def refuse_other_words(recipe: str, pairs: Sequence[str], *, commands: Iterable[str]) -> None:
    """UserError for a recipe that is none, but nearly a command or a key of a recipe."""
    if _is_recipe(recipe):
        return
    from launchyard.launcher.recipe.load import key_of, parse_overrides

    near = SYNONYMS.get(recipe) or next(iter(difflib.get_close_matches(recipe, commands, n=1, cutoff=0.7)), None)
    if near is not None and not os.path.exists(f"{recipe}.yaml"):
        raise UserError(f"{recipe}: no such command or recipe; did you mean `launch {near}`?")
    if "." in recipe and key_of(recipe) is not None:
        parse_overrides([recipe, *pairs])  # which refuses it


def explain_option(error: click.NoSuchOption, arguments: Sequence[str]) -> Exception:
    """The error of an unknown option; a better one if it is a key, where a command takes KEY=VALUE."""
    from launchyard.launcher.recipe.load import key_of, value_after

    params = error.ctx.command.params if error.ctx is not None else []
    if not any("KEY=VALUE" in (param.metavar or "") for param in params):
        return error
    key = key_of(error.option_name.lstrip("-").replace("-", "_"))
    if key is None:
        return error
    place = next(at for at, word in enumerate(arguments) if word.partition("=")[0] == error.option_name)
    value = arguments[place].partition("=")[2] or value_after(arguments[place + 1 :])
    return UserError(f"{error.option_name} is no option but a key of the recipe; write {key}={value}")


def _is_recipe(name: str) -> bool:
    from launchyard.launcher.recipe.bundled import bundled_recipes

    return name == "-" or "://" in name or os.path.lexists(os.path.expanduser(name)) or name in bundled_recipes()
