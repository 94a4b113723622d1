"""`launch diff`: runs, or a run and a recipe, side by side in the terminal, as JSON or as a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED, UserError
from launchyard.launcher.cli.completion import complete_run
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.format import can_draw, json_text, plain

_COLOURS = ("blue", "red", "green", "yellow", "magenta", "cyan")  # in the order of the page's


@click.command()
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, shell_complete=complete_run)
@click.option(
    "--html", type=path_or_url, metavar="FILE", help="Write it as a page, with the curves; - is standard output."
)
@click.option("--code", is_flag=True, help="Print all of the diff of the code.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything but speed and time differs, as git diff does.")
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
def command(runs: tuple[str, ...], *, html: str | None, code: bool, exit_code: bool, as_json: bool) -> int:
    """Compare runs: what differs of recipe, code, data, machines and curves. Each is compared with the first.

    RUN: id, its beginning or end, name, `latest`, path or URL, of a run that has ended or goes on; or a recipe, whose
    name ends in .yaml, which is compared as it would be launched from here. Nothing is changed.
    """
    from launchyard.launcher.report.diff.comparison import MAX_SIDES, compare_sides
    from launchyard.launcher.report.diff.sides import read_side
    from launchyard.launcher.report.diff.text import text_lines

    if not 2 <= len(runs) <= MAX_SIDES:
        raise click.UsageError(f"name from 2 to {MAX_SIDES} runs or recipes; got {len(runs)}")
    if as_json and html == "-":
        raise click.UsageError("--json and --html - both print to standard output; name a file for the page")
    found = compare_sides([read_side(word) for word in runs])
    if html is not None:
        from launchyard.launcher.report.diff.page import diff_page

        _write(html, diff_page(found), quiet=as_json)
    if as_json:
        click.echo(json_text(found.to_json()))
    elif html is None:
        for line in text_lines(found, paint=_paint(len(runs)), code=code):
            click.echo(plain(line, sys.stdout))
    return EXIT_FAILED if exit_code and found.differs else EXIT_DONE


def _paint(number: int) -> Sequence[Callable[[str], str]]:
    """click leaves the colours out where the output is no terminal."""
    return [partial(click.style, fg=colour, bold=True) for colour in _COLOURS[:number]] if can_draw(sys.stdout) else []


def _write(path: str, page: str, *, quiet: bool) -> None:
    if path == "-":
        sys.stdout.write(page)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"--html {path}: {error.strerror or error}") from error
    if not quiet:
        click.echo(f"wrote {os.path.relpath(path)} ({len(page.encode()) / 1e3:.0f} kB)")
