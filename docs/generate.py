"""Write docs/reference anew from the code: `make docs`. What is written there is never edited by hand.

Knows the schemas, the command tree and the table of metrics; holds no fact of its own about any of them.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

REFERENCE = Path(__file__).parent / "reference"
MARK = "<!-- Made by docs/generate.py (`make docs`); edits are lost. -->\n"
WIDTH = 100


# -- schemas -----------------------------------------------------------------------------------------------------
def type_words(annotation: Any) -> str:
    """A type as people read it: `fp32 | bf16`, `number or null`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(arg) for arg in args if arg is not type(None)))
    if origin in (list, tuple):
        return f"list of {type_words(args[0])}s"
    if origin is dict:
        return "mapping"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "mapping"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(annotation, str(annotation))


def default_words(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "—"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, (tuple, list)) else f"`{value}`"


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The schema behind a field that is a mapping of its own, also behind `Schema | None`."""
    for one in (field.annotation, *typing.get_args(field.annotation)):
        if inspect.isclass(one) and issubclass(one, BaseModel):
            return one
    return None


def cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


def rows(fields: dict[str, FieldInfo], prefix: str) -> Iterator[str]:
    """One row a key; the keys of a list's mappings follow it as `key[].inner`."""
    for key, field in fields.items():
        words = type_words(field.annotation), default_words(field), field.description
        yield f"| `{prefix}{key}` | {' | '.join(cell(word) for word in words)} |\n"
        for one in typing.get_args(field.annotation):
            for item in typing.get_args(one) if typing.get_origin(one) is list else ():
                if inspect.isclass(item) and issubclass(item, BaseModel):
                    yield from rows(item.model_fields, f"{prefix}{key}[].")


def schema_tables(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """One table a section, its plain keys first, then a part for each section inside it."""
    fields = schema.model_fields
    plain = {key: field for key, field in fields.items() if section_of(field) is None}
    if prefix:
        yield f"\n## `{prefix.rstrip('.')}`\n\n{' '.join((schema.__doc__ or '').split())}\n"
    if plain:
        yield "\n| key | type | default | meaning |\n|---|---|---|---|\n"
    yield from rows(plain, prefix)
    for key, field in fields.items():
        if (section := section_of(field)) is not None:
            yield from schema_tables(section, f"{prefix}{key}.")


def recipe_page() -> Iterator[str]:
    from launchyard.training.recipe import Recipe

    yield "# Recipe\n\n"
    yield (
        "A recipe is a YAML file; on the command line any key is set as `section.key=value`. Unknown keys are "
        "errors. `extends: NAME` at the top takes another recipe as its base, one level deep.\n"
    )
    yield from schema_tables(Recipe)


def cluster_page() -> Iterator[str]:
    from launchyard.launcher.backends.cluster import Cluster

    yield "# Cluster\n\n"
    yield (
        "A cluster is a YAML file that describes a place; `--cluster` takes its name or its path. Bundled ones lie in "
        "`clusters/`, your own in the folder that `launch --cluster nonsense` names.\n"
    )
    yield from schema_tables(Cluster)


# -- commands ----------------------------------------------------------------------------------------------------
def root_command() -> click.Group:
    from launchyard.launcher.cli import main

    groups = [value for value in vars(main).values() if isinstance(value, click.Group)]
    assert len(groups) == 1, "launcher/cli/main.py has one group, the command `launch`"
    return groups[0]


def launching_command(context: click.Context) -> click.Command:
    """`launch RECIPE`: the command behind all that is no subcommand."""
    from launchyard.launcher.cli import main

    command = root_command().get_command(context, main.LAUNCH)
    assert command is not None
    return command


def help_of(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = WIDTH
    yield f"\n## `{context.command_path}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None and not found.hidden:
                yield from help_of(found, child, context)


def cli_page() -> Iterator[str]:
    yield "# The command line\n\nWhat `launch … --help` prints, all in one place. "
    yield "What the exit codes mean: [exit codes](exit-codes.md).\n"
    yield from help_of(root_command(), "launch", None)


# -- metrics -----------------------------------------------------------------------------------------------------
def metrics_page() -> Iterator[str]:
    from launchyard.training.telemetry.metric_table import METRICS, STATES
    from launchyard.training.telemetry.phases import PHASES

    yield "# Metrics\n\n"
    yield (
        "Every worker serves its series for Prometheus on an address of its own, which stands in "
        "`attempts/NNNN/targets/NNNNN.json`. *global* series come from rank 0, reduced over all ranks; *rank* series "
        "come from every worker; `launcher_` series from the monitor of all runs.\n\n"
        "| series | kind | of | labels | meaning |\n|---|---|---|---|---|\n"
    )
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        yield f"| `{metric.name}` | {metric.kind} | {metric.scope} | {labels} | {cell(metric.help)} |\n"
    yield f"\nPhases: {', '.join(f'`{phase}`' for phase in PHASES)}.\n"
    yield f"States: {', '.join(f'`{state}`' for state in STATES)}.\n"


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "recipe.md": recipe_page,
    "cluster.md": cluster_page,
    "cli.md": cli_page,
    "metrics.md": metrics_page,
}


def page(name: str) -> str:
    """The whole text of one page of docs/reference."""
    return MARK + "".join(PAGES[name]())


def main() -> None:
    """Write the pages; with --check only name those that would change, and exit with 1 if there are any."""
    sys.path.insert(0, str(REFERENCE.parents[1]))
    changed = [
        name for name in PAGES if not (REFERENCE / name).exists() or (REFERENCE / name).read_text() != page(name)
    ]
    if "--check" in sys.argv:
        sys.exit(f"{', '.join(changed)}: the code has moved on; say `make docs`" if changed else 0)
    for name in changed:
        (REFERENCE / name).write_text(page(name))
        print(f"wrote {REFERENCE / name}")


if __name__ == "__main__":
    main()
