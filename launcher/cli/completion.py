"""Shell completion: the scripts (click's, but for bash), and the candidates. Imports nothing heavy: each TAB waits."""

from __future__ import annotations

import glob
import json
import os
from typing import TYPE_CHECKING

import click

from launchyard.host.environment import variable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    Candidates = list[CompletionItem[str]]

COMPLETE = "_LAUNCH_COMPLETE"  # set by the script of a shell when it asks
_FILES = ("data.source", "data.validation", "tokenizer", "model.init_from")
# Click's script for bash gets words cut at = and :, and ends every one with a space. This one passes the line.
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' line type value
    COMPREPLY=()
    for line in $(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
            %(complete_var)s=bash_complete "$1"); do
        IFS=',' read -r type value <<< "$line"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                COMPREPLY+=("$value")
                [[ $value == *[=/] ]] && compopt -o nospace
                ;;
        esac
    done
    return 0
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


def prepare_completion() -> None:
    """Lets click complete bash's lines by our script, if a shell asks."""
    if variable(COMPLETE) is not None:
        register_bash()


def register_bash() -> None:
    from click.shell_completion import BashComplete, add_completion_class, split_arg_string

    class LineComplete(BashComplete):
        source_template = _BASH

        def get_completion_args(self) -> tuple[list[str], str]:
            line = variable("COMP_LINE") or ""
            words = split_arg_string(line)
            while words and "=" in words[0]:  # NAME=VALUE before the command
                del words[0]
            incomplete = "" if line.endswith(" ") or len(words) < 2 else words.pop()
            breaks = [mark for mark in (variable("COMP_WORDBREAKS") or "=:") if mark in "=:"]
            self._kept = max((incomplete.rfind(mark) for mark in breaks), default=-1) + 1  # bash completes what follows
            return words[1:], incomplete

        def format_completion(self, item: CompletionItem[str]) -> str:
            return f"{item.type},{item.value[self._kept :]}"

    add_completion_class(LineComplete)


def complete_recipe(ctx: click.Context, param: click.Parameter | None, incomplete: str) -> Candidates:
    """Recipes; after one, or where none begins like that (--local needs none), keys and their values."""
    found = [] if ctx.params.get("arguments") else recipe_names(incomplete)
    return found or complete_pair(ctx, param, incomplete)


def recipe_names(incomplete: str) -> Candidates:
    """Bundled recipes, YAML files and the folders on the way to them."""
    from click.shell_completion import CompletionItem

    from launchyard.launcher.recipe.bundled import bundled_recipes

    if "=" in incomplete:
        return []
    names = [name for name in bundled_recipes() if name.startswith(incomplete)]
    paths = sorted(glob.glob(f"{glob.escape(incomplete)}*"))
    files = [path for path in paths if path.endswith((".yaml", ".yml"))]
    folders = [f"{path}/" for path in paths if os.path.isdir(path)]
    return [CompletionItem(candidate) for candidate in [*names, *files, *folders]]


def complete_pair(_ctx: click.Context, _param: click.Parameter | None, incomplete: str) -> Candidates:
    """KEY= of a recipe, and the values of a key that has few."""
    from click.shell_completion import CompletionItem

    from launchyard.launcher.recipe.bundled import recipe_folder
    from launchyard.launcher.recipe.hints import at, choices, described, leaf_keys

    schema = json.loads((recipe_folder() / "recipe.schema.json").read_bytes())
    key, equals, value = incomplete.partition("=")
    if not equals:
        keys = {key: at(schema, tuple(key.split("."))) or {} for key in leaf_keys(schema) if key != "extends"}
        items = {key: CompletionItem(f"{key}=", help=described(schema, node)) for key, node in keys.items()}
        return [item for key, item in items.items() if key.startswith(incomplete)]
    if key in _FILES:
        return [CompletionItem(incomplete, type="file")]
    values = _presets() if key == "model.preset" else choices(schema, at(schema, tuple(key.split("."))) or {})
    return [CompletionItem(f"{key}={choice}") for choice in values if choice.startswith(value)]


def _presets() -> list[str]:
    from launchyard.model.zoo import presets

    return list(presets())


def complete_cluster(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Candidates:
    """Names of clusters, and files."""
    from click.shell_completion import CompletionItem

    from launchyard.launcher.recipe.bundled import cluster_files

    names = [CompletionItem(name) for name in cluster_files() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_run(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Candidates:
    """Ids of the runs that are known here; paths where none begins like that."""
    from click.shell_completion import CompletionItem

    from launchyard.launcher.runs.registry import known_ids

    ids = [CompletionItem(run_id) for run_id in known_ids() if run_id.startswith(incomplete)]
    return ids or [CompletionItem(incomplete, type="file")]


def complete_sweep(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> Candidates:
    """Ids of the sweeps that are known here."""
    from click.shell_completion import CompletionItem

    from launchyard.launcher.sweep.record import known_sweeps

    return [CompletionItem(known.sweep_id) for known in known_sweeps() if known.sweep_id.startswith(incomplete)]


def complete_several(ctx: click.Context, param: click.Parameter, incomplete: str) -> Candidates:
    """Sweeps and runs, for commands that take either."""
    return [*complete_sweep(ctx, param, incomplete), *complete_run(ctx, param, incomplete)]


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> Candidates:
    """Runs, models of the hub in the local cache, and paths where none begins like that."""
    from click.shell_completion import CompletionItem

    from launchyard.storage.hub_cache import downloaded_models

    runs = complete_run(ctx, param, incomplete)
    models = [CompletionItem(name) for name in downloaded_models() if incomplete and name.startswith(incomplete)]
    return [*(item for item in runs if item.type == "plain"), *models] if models else runs


def complete_topic(ctx: click.Context, param: click.Parameter, incomplete: str) -> Candidates:
    """Commands, and keys of a recipe."""
    from click.shell_completion import CompletionItem

    root = ctx.find_root().command
    names = root.list_commands(ctx) if isinstance(root, click.Group) else []
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    keys = complete_pair(ctx, param, incomplete)
    return [*found, *(CompletionItem(item.value.rstrip("="), help=item.help) for item in keys)]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    bash   echo 'eval "$(launch completion bash)"' >> ~/.bashrc
    zsh    echo 'eval "$(launch completion zsh)"' >> ~/.zshrc
    fish   launch completion fish > ~/.config/fish/completions/launch.fish
    """
    from click.shell_completion import get_completion_class

    register_bash()
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "launch", COMPLETE).source())
