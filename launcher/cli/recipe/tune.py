"""`launch tune`: micro-batch and learning rate of a recipe, by trying. Parses, calls launcher/tune, and prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.launcher.cli.completion import complete_cluster, complete_recipe
from launchyard.launcher.cli.weights.export import FileSize

if TYPE_CHECKING:
    from launchyard.launcher.tune.tune import TuneRequest

TuneOption = str | int | float | bool | None


def run_tune(arguments: tuple[str, ...], **options: TuneOption) -> int:
    """Find the micro-batch and the learning rate of a recipe by trying them here.

    Micro-batch: real steps of the recipe in a process of their own, at twice the size each time until one does not
    fit, then in between. Told are the largest that fits and the fastest; they often differ.

    Learning rate: a range test. The rate rises by the same factor each step until the loss diverges; suggested is
    where the loss falls fastest, or a tenth of where it diverges if that is less.

    The recipe stays as it is. At the end stands the command to use.

    \b
      launch tune my.yaml
      launch tune my.yaml --micro-batch --memory 8GB
      launch tune my.yaml --lr --steps 200 --max-lr 0.1 --out tuned
    """
    from launchyard.launcher.tune.results import (
        check_tune_folder,
        row_texts,
        tuned_lines,
        tuned_rows,
        write_results,
    )
    from launchyard.launcher.tune.tune import tune

    request = _request(arguments, options)
    as_json = bool(options["as_json"])
    out = options["out"]
    if out is not None:
        check_tune_folder(str(out))
    tuned = tune(request, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(row_texts(tuned_rows(tuned, request)), nl=False)
    else:
        click.echo("\n".join(tuned_lines(tuned, request)))
    if out is not None:
        for path in write_results(tuned, request, str(out)):
            click.echo(f"✓ {'written':<8} {path}", err=True)
    return EXIT_DONE if tuned.complete else EXIT_FAILED


def _request(arguments: tuple[str, ...], options: dict[str, TuneOption]) -> TuneRequest:
    from launchyard.launcher.backends.section import FIRST
    from launchyard.launcher.cli.main import COMMANDS, split_arguments
    from launchyard.launcher.cli.typos import refuse_other_words
    from launchyard.launcher.recipe.load import parse_overrides
    from launchyard.launcher.tune.tune import TuneRequest

    recipe, pairs = split_arguments(arguments)
    if recipe is None:
        raise click.UsageError("which recipe? Name one, such as: launch tune my.yaml")
    refuse_other_words(recipe, pairs, commands=COMMANDS)
    lowest = float(options["min_lr"] or 0)
    highest = float(options["max_lr"] or 0)
    if lowest >= highest:
        raise click.UsageError(f"--min-lr {lowest:g} must be below --max-lr {highest:g}")
    both = not options["sizes"] and not options["rates"]
    gpus = options["gpus_per_node"]
    memory = options["memory"]
    return TuneRequest(
        recipe=recipe,
        cluster=str(options["cluster"] or FIRST),
        overrides=parse_overrides(pairs) | ({} if gpus is None else {"resources.gpus_per_node": gpus}),
        sizes=bool(options["sizes"]) or both,
        rates=bool(options["rates"]) or both,
        n_steps=int(options["n_steps"] or 0),
        lr_range=(lowest, highest),
        seconds=float(options["timeout"] or 0),
        memory=memory if isinstance(memory, int) else None,
    )


_ABOVE_ZERO = click.FloatRange(min=0, min_open=True)
tune_command = click.Command(
    "tune",
    callback=run_tune,
    help=run_tune.__doc__,
    params=[
        click.Argument(["arguments"], nargs=-1, metavar="RECIPE [KEY=VALUE]...", shell_complete=complete_recipe),
        click.Option(["--micro-batch", "sizes"], is_flag=True, help="The micro-batch alone.  [default: both]"),
        click.Option(["--lr", "rates"], is_flag=True, help="The learning rate alone.  [default: both]"),
        click.Option(
            ["--steps", "n_steps"],
            type=click.IntRange(min=20),
            default=100,
            show_default=True,
            metavar="N",
            help="Steps of the range test.",
        ),
        click.Option(
            ["--min-lr"], type=_ABOVE_ZERO, default=1e-6, show_default=True, metavar="LR", help="Of the first."
        ),
        click.Option(["--max-lr"], type=_ABOVE_ZERO, default=1.0, show_default=True, metavar="LR", help="Of the last."),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(min=1),
            default=600.0,
            show_default=True,
            metavar="S",
            help="Seconds for each trial.",
        ),
        click.Option(
            ["--memory"],
            type=FileSize(),
            metavar="SIZE",
            help="CPU: take no more of this machine's memory, such as 8GB.  [default: what is free, less a margin]",
        ),
        click.Option(
            ["--cluster"],
            metavar="NAME|FILE",
            shell_complete=complete_cluster,
            help="This machine, as it is described.",
        ),
        click.Option(["--gpus-per-node"], type=click.IntRange(min=0), metavar="N", help="GPUs to use; default: all."),
        click.Option(
            ["--out"], metavar="FOLDER", help="Keep the rows (tune.jsonl) and the curve (learning-rates.svg)."
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print rows of JSON."),
    ],
)
