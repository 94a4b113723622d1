"""Shell completion: the scripts (click's own), and the candidates. Imports nothing heavy: it runs at every TAB."""

from __future__ import annotations

import glob
import os
from typing import Any

import click


def complete_recipe(_ctx: click.Context, _param: click.Parameter | None, incomplete: str) -> list[Any]:
    """Bundled recipes, YAML files and the folders on the way to them."""
    from click.shell_completion import CompletionItem

    from launchyard.launcher.recipe.bundled import bundled_recipes

    if "=" in incomplete or incomplete.startswith("-"):
        return []
    names = [name for name in bundled_recipes() if name.startswith(incomplete)]
    paths = sorted(glob.glob(f"{glob.escape(incomplete)}*"))
    files = [path for path in paths if path.endswith((".yaml", ".yml"))]
    folders = [f"{path}/" for path in paths if os.path.isdir(path)]
    return [CompletionItem(candidate) for candidate in [*names, *files, *folders]]


def complete_cluster(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    from launchyard.launcher.recipe.bundled import cluster_files

    return [name for name in cluster_files() if name.startswith(incomplete)]


def complete_run(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Ids of the runs that are known here."""
    from launchyard.launcher.runs.registry import known_ids

    return [run_id for run_id in known_ids() if run_id.startswith(incomplete)]


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

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "launch", "_LAUNCH_COMPLETE").source())
