"""`launch finetune`: the short way to a finetuning recipe. Makes a launch of it, and shows the recipe that it made."""

from __future__ import annotations

import json

import click

from launchyard.launcher.cli.completion import complete_model
from launchyard.launcher.cli.main import launch_recipe
from launchyard.launcher.cli.weights.find import MODEL_HELP, find_model
from launchyard.launcher.submit.finetune import METHODS, finetune_keys, finetune_recipe
from launchyard.storage.damage import JsonObject


def launch_finetune(
    model: str, data: tuple[str, ...], method: str, pairs: tuple[str, ...], **options: str | int | bool | None
) -> int:
    """Finetune MODEL on rows of instructions: the recipe finetune/METHOD with this model and data.

    Rows are JSON lines, JSON, parquet or a folder of them, with instruction and output, prompt and completion, messages
    or conversations; of dpo with prompt, chosen and rejected. KEY=VALUE changes a key of the recipe.
    """
    from launchyard.launcher.recipe.load import parse_overrides

    for pair in pairs:
        if "=" not in pair:
            raise click.UsageError(f"{pair} is no KEY=VALUE; rows are named with --data")
    recipe = finetune_recipe(method)
    keys = finetune_keys(find_model(model), data, parse_overrides(list(pairs)))
    if not options.get("as_json"):
        _show(recipe, keys)
    words = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    code = click.get_current_context().invoke(launch_recipe, arguments=(recipe, *words), **options)
    assert isinstance(code, int)
    return code


def _show(recipe: str, keys: JsonObject) -> None:
    """The recipe as a file of one's own has it."""
    import yaml

    made: JsonObject = {"extends": recipe}
    for key, value in keys.items():
        *sections, last = key.split(".")
        place = made
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    click.echo("this recipe, which a file of your own can hold:", err=True)
    for line in yaml.safe_dump(made, sort_keys=False, allow_unicode=True).splitlines():
        click.echo(f"  {line}", err=True)
    click.echo(err=True)


command = click.Command(
    "finetune",
    callback=launch_finetune,
    help=launch_finetune.__doc__,
    epilog=MODEL_HELP,
    params=[
        click.Argument(["model"], metavar="MODEL", shell_complete=complete_model),
        click.Argument(["pairs"], nargs=-1, metavar="[KEY=VALUE]..."),
        click.Option(
            ["--data"],
            multiple=True,
            required=True,
            metavar="FILE",
            help="Rows: file, folder, glob or URL; repeatable.",
        ),
        click.Option(["--method"], type=click.Choice(METHODS), default="lora", show_default=True, help="What trains."),
        *(param for param in launch_recipe.params if isinstance(param, click.Option) and param.name != "help"),
    ],
)
