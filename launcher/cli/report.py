"""`launch report`: a run as one page of HTML, in a file."""

from __future__ import annotations

import os
import sys

import click

from launchyard.errors import EXIT_DONE, UserError
from launchyard.launcher.cli.completion import complete_run
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.format import json_text


@click.command()
@click.argument("run", metavar="RUN", shell_complete=complete_run)
@click.option(
    "--out", type=path_or_url, metavar="FILE", help="Where the page goes; - is standard output.  [default: RUN.html]"
)
@click.option("--json", "as_json", is_flag=True, help="Print where it went as JSON.")
def report(run: str, *, out: str | None, as_json: bool) -> int:
    """Write a report of a run on one page: curves, attempts over time, where the time went, checkpoints, configuration.

    The page is one HTML file that needs no network and no scripts; send it to anyone. Passwords in URLs are
    left out. Where the time of each attempt went is printed, too, as `launch metrics --phases` does.
    """
    from launchyard.launcher.report.history import read_story
    from launchyard.launcher.report.html import report_page
    from launchyard.launcher.report.phases import phase_lines, story_phases
    from launchyard.launcher.runs.find import find
    from launchyard.launcher.runs.why import explain

    found = find(run)
    story = read_story(found)
    page = report_page(story, why=explain(found, goodput=story.goodput).text)
    if out == "-":
        sys.stdout.write(page)
        return EXIT_DONE
    path = out or f"{story.state.run_id}.html"
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror or error}") from error
    facts = {"run_id": story.state.run_id, "file": os.path.abspath(path), "bytes": len(page.encode())}
    if as_json:
        click.echo(json_text(facts))
        return EXIT_DONE
    for attempt in story_phases(story):
        click.echo("\n".join([*phase_lines(attempt), ""]))
    click.echo(f"wrote {path} ({len(page.encode()) / 1e3:.0f} kB)")
    return EXIT_DONE
