"""`launch keys`: every key of a recipe or a cluster file. Reads the bundled schema, and loads no model of pydantic."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from launchyard.errors import EXIT_DONE, UserError
from launchyard.launcher.format import json_text

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from launchyard.launcher.recipe.hints import Node
    from launchyard.launcher.recipe.keys import KeyFacts

_WIDTH = 100  # where the output is no terminal
_NARROW = 24  # columns of text, below which the meaning gets a line of its own


def complete_key(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Sections and keys of the file that the command is about."""
    from click.shell_completion import CompletionItem

    from launchyard.launcher.recipe.keys import list_keys, section_names

    schema = _schema(cluster=bool(ctx.params.get("cluster")))
    sections = [CompletionItem(name) for name in section_names(schema)]
    keys = [CompletionItem(facts.key, help=facts.meaning) for facts in list_keys(schema)]
    return [item for item in (*sections, *keys) if item.value.startswith(incomplete)]


@click.command("keys")
@click.argument("prefix", required=False, metavar="[PREFIX]", shell_complete=complete_key)
@click.option("--cluster", is_flag=True, help="Those of a cluster file.")
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
def list_all(prefix: str | None, *, cluster: bool, as_json: bool) -> int:
    """List the keys of a recipe with their values, defaults and meaning.

    PREFIX: a section or a key, such as train or optimizer.lr; a part of a name lists all keys that have it.
    """
    schema = _schema(cluster=cluster)
    found = _matching(schema, prefix or "", cluster=cluster)
    if as_json:
        click.echo(json_text([facts.to_json() for facts in found]))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH
        click.echo("\n".join(_lines(found, width)))
    return EXIT_DONE


def _schema(*, cluster: bool) -> Node:
    from launchyard.launcher.recipe.bundled import ROOT, recipe_folder

    path = ROOT / "clusters/cluster.schema.json" if cluster else recipe_folder() / "recipe.schema.json"
    found: Node = json.loads(path.read_bytes())
    return found


def _matching(schema: Node, prefix: str, *, cluster: bool) -> list[KeyFacts]:
    """The keys of a section, or one key; else all that have the text in their name. UserError if none has."""
    from launchyard.launcher.recipe.keys import list_keys

    prefix = prefix.strip(".")
    if found := list_keys(schema, prefix):
        return found
    if found := [facts for facts in list_keys(schema) if prefix in facts.key]:
        return found
    raise UserError(f"{prefix}: no key of a {'cluster file' if cluster else 'recipe'}{_meant(schema, prefix, cluster)}")


def _meant(schema: Node, word: str, cluster: bool) -> str:
    """The key that was meant: another trainer's name for it, or the nearest; else the sections."""
    from launchyard.launcher.recipe.aliases import CLUSTER_VOCABULARY, RECIPE_VOCABULARY
    from launchyard.launcher.recipe.hints import nearest
    from launchyard.launcher.recipe.keys import list_keys, section_names

    vocabulary = CLUSTER_VOCABULARY if cluster else RECIPE_VOCABULARY
    if word in vocabulary.advice:
        return f"; {vocabulary.advice[word]}"
    keys = [facts.key for facts in list_keys(schema)]
    last = {key.rsplit(".", 1)[-1]: key for key in keys}
    near = vocabulary.moved.get(word) or nearest(word, [*section_names(schema), *keys])
    near = near or last.get(nearest(word, list(last)) or "")
    if near:
        return f"; did you mean {near}?"
    return f"; sections: {', '.join(name for name in section_names(schema) if '.' not in name)}"


def _lines(found: Sequence[KeyFacts], width: int) -> Iterator[str]:
    """A table whose last columns are wrapped; where it is too narrow for that, a paragraph a key."""
    keys = max(len(facts.key) for facts in found)
    room = width - keys - 2
    values = min(room * 2 // 5, 34)
    defaults = min(max(7, *(len(facts.default_text) for facts in found)), 16)
    meaning = room - values - defaults - 4
    if meaning < _NARROW:
        yield from _paragraphs(found, width)
        return
    widths = (keys, values, defaults, meaning)
    yield _row(("KEY", "VALUES", "DEFAULT", "MEANING"), widths)
    for facts in found:
        cells = (facts.key, facts.values, facts.default_text, facts.meaning)
        wrapped = [_wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
        for number in range(max(map(len, wrapped))):
            yield _row([cell[number] if number < len(cell) else "" for cell in wrapped], widths)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _paragraphs(found: Sequence[KeyFacts], width: int) -> Iterator[str]:
    for facts in found:
        yield facts.key
        default = "required" if facts.required else f"default: {facts.default_text}"
        for text in (f"{facts.values}; {default}", facts.meaning):
            yield from (f"  {line}" for line in _wrap(text, max(20, width - 2)))


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]
