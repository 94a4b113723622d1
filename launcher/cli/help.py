"""`launch help` and `launch version`."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from launchyard.errors import EXIT_DONE, UserError
from launchyard.launcher.cli.completion import complete_topic

if TYPE_CHECKING:
    from launchyard.launcher.recipe.hints import Node


@click.command("help")
@click.argument("topic", nargs=-1, metavar="[COMMAND | KEY]", shell_complete=complete_topic)
@click.pass_context
def show_help(ctx: click.Context, topic: tuple[str, ...]) -> int:
    """Explain a command, or a section or key of a recipe: `launch help resume`, `launch help train.max_steps`."""
    root = ctx.find_root()
    if not topic:
        click.echo(root.get_help())
        return EXIT_DONE
    found: click.Command | None = root.command
    assert isinstance(found, click.Group)
    commands = found.list_commands(root)
    context = root
    for number, word in enumerate(topic):
        found = found.get_command(context, word) if isinstance(found, click.Group) else None
        if found is None:
            if number:
                raise UserError(f"{' '.join(topic)}: no such command", hint=f"launch {' '.join(topic[:number])} --help")
            click.echo("\n".join(_of_key(" ".join(topic), commands=commands)))
            return EXIT_DONE
        context = click.Context(found, info_name=word, parent=context)
    assert found is not None
    click.echo(found.get_help(context))
    return EXIT_DONE


def _of_key(key: str, *, commands: list[str]) -> Iterator[str]:
    """A section with its keys, or one key: its values, default and meaning."""
    from launchyard.launcher.recipe.hints import at, keys_at, leaf_keys, nearest
    from launchyard.launcher.recipe.load import key_of
    from launchyard.training.recipe import Recipe

    schema = Recipe.model_json_schema()
    meant = key_of(key)
    if meant is None:
        near = nearest(key, [*commands, *schema["properties"], *leaf_keys(schema)])
        meant = f"; did you mean {near}?" if near else "; sections of a recipe: " + ", ".join(schema["properties"])
        raise UserError(f"{key}: neither a command nor a key of a recipe{meant}")
    path = tuple(meant.split("."))
    node = at(schema, path) or {}
    inner = keys_at(schema, path)
    yield from _lines(schema, meant, node, section=bool(inner))
    for name in inner:
        yield from _lines(schema, f"{meant}.{name}", at(schema, (*path, name)) or {}, section=False)


def _lines(schema: Node, key: str, node: Node, *, section: bool) -> Iterator[str]:
    from launchyard.launcher.recipe.hints import allowed, described

    about = described(schema, node)
    if section:
        yield f"{key}: {about}"
        return
    default = node.get("default")
    values = allowed(schema, node) + (f"; default: {str(default).lower() if isinstance(default, bool) else default}"
                                      if default is not None and not isinstance(default, dict) else "")  # fmt: skip
    width = min(100, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
    yield f"  {key}" if "." in key else key
    for text in (about, f"({values})"):
        yield from textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")


@click.command()
def version() -> None:
    """Show the version of launchyard."""
    from importlib.metadata import version as version_of

    click.echo(f"launchyard {version_of('launchyard')}")
