"""`launch bench`: the speed of a recipe on this machine. Parses, calls launcher/bench, and prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED
from launchyard.launcher.bench.kinds import CHANGED_KINDS
from launchyard.launcher.cli.completion import complete_cluster, complete_recipe

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from launchyard.launcher.bench.bench import BenchRequest


def run_bench(arguments: tuple[str, ...], *, as_json: bool, **options: Any) -> int:
    """Measure a recipe on this machine, and what would make it faster.

    The recipe as it is makes a few steps in a process of its own: tokens per second, model FLOPs utilisation, where
    the time goes, and memory, beside what the plan says. Then one thing at a time is changed and tried: the
    micro-batch, activation checkpointing, workers and threads of a CPU, the precision, compilation; each between two
    more trials of the recipe as it is. At the end stand the keys to use.

    The recipe stays as it is, and nothing is kept.

    \b
      launch bench my.yaml
      launch bench my.yaml --try micro-batch --try compile --max-time 300
      launch bench my.yaml --try data.seq_len=1024
      launch bench my.yaml --alone --steps 20
    """
    from launchyard.launcher.bench.bench import bench
    from launchyard.launcher.bench.results import bench_facts, bench_lines
    from launchyard.launcher.format import json_text

    request = _request(arguments, **options)
    benched = bench(request, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json_text(bench_facts(benched, request)))
    else:
        click.echo("\n".join(bench_lines(benched, request)))
    if benched.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if benched.own is None else EXIT_DONE


def _request(
    arguments: tuple[str, ...],
    *,
    n_steps: int,
    wanted: tuple[str, ...],
    alone: bool,
    anew: bool,
    max_time: float,
    cluster: str | None,
) -> BenchRequest:
    from launchyard.launcher.backends.section import FIRST
    from launchyard.launcher.bench.bench import BenchRequest
    from launchyard.launcher.cli.main import COMMANDS, split_arguments
    from launchyard.launcher.cli.typos import refuse_other_words
    from launchyard.launcher.recipe.load import parse_overrides

    recipe, pairs = split_arguments(arguments)
    if recipe is None:
        raise click.UsageError("which recipe? Name one, such as: launch bench my.yaml")
    refuse_other_words(recipe, pairs, commands=COMMANDS)
    if wanted and alone:
        raise click.UsageError("--alone tries no change, and --try names one; leave out one of them")
    for word in wanted:
        if "=" not in word and word not in CHANGED_KINDS:
            raise click.UsageError(f"--try {word}: use one of {', '.join(CHANGED_KINDS)}, or KEY=VALUE")
    return BenchRequest(
        recipe=recipe,
        cluster=cluster or FIRST,
        overrides=parse_overrides(pairs),
        wanted=wanted,
        n_steps=n_steps,
        max_seconds=max_time,
        alone=alone,
        anew=anew,
    )


def _complete_try(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(name) for name in CHANGED_KINDS if name.startswith(incomplete)]


bench_command = click.Command(
    "bench",
    callback=run_bench,
    help=run_bench.__doc__,
    params=[
        click.Argument(["arguments"], nargs=-1, metavar="RECIPE [KEY=VALUE]...", shell_complete=complete_recipe),
        click.Option(
            ["--steps", "n_steps"],
            type=click.IntRange(min=1),
            default=5,
            show_default=True,
            metavar="N",
            help="Steps of each trial, behind two that warm up.",
        ),
        click.Option(
            ["--try", "wanted"],
            multiple=True,
            metavar="WHAT",
            shell_complete=_complete_try,
            help=f"Change only this: {', '.join(CHANGED_KINDS)}, or KEY=VALUE. May be repeated.  [default: all]",
        ),
        click.Option(["--calibrate", "anew"], is_flag=True, help="Measure again how fast this machine is."),
        click.Option(["--alone"], is_flag=True, help="Measure the recipe as it is, and try nothing else."),
        click.Option(
            ["--max-time"],
            type=click.FloatRange(min=1),
            default=600.0,
            show_default=True,
            metavar="S",
            help="Seconds for all of it.",
        ),
        click.Option(
            ["--cluster"],
            metavar="NAME|FILE",
            shell_complete=complete_cluster,
            help="This machine, as it is described.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print facts as JSON."),
    ],
)
