"""`launch rm`: runs that have ended, removed for good after a question."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from launchyard.errors import EXIT_DONE, UserError
from launchyard.launcher.cli.runs import JSON, SEVERAL
from launchyard.launcher.format import json_text, size, table
from launchyard.launcher.runs.remove import Removal, plan_removal, remove_run
from launchyard.storage.redact import redact


@click.command()
@SEVERAL
@click.option("--yes", is_flag=True, help="Do not ask. Needed where nobody can answer.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed; remove nothing.")
@JSON
def rm(runs: tuple[str, ...], *, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Remove runs that have ended, with all their checkpoints, logs and metrics.

    All are checked before the first is removed. Links are removed, never followed. Prepared data stays: it is shared.
    """
    found = list({removal.url: removal for removal in map(plan_removal, runs)}.values())
    if not as_json:
        click.echo("\n".join(_lines(found)))
    if not (dry_run or yes):
        if not sys.stdin.isatty():
            raise UserError("nothing was removed: there is nobody to ask", hint="add --yes, or --dry-run to look only")
        if not click.confirm("Remove for good?", err=True):
            click.echo("nothing was removed", err=True)
            return EXIT_DONE
    for removal in () if dry_run else found:
        remove_run(removal)
        if not as_json:
            click.echo(f"removed {removal.run_id}")
    if as_json:
        click.echo(json_text([{**asdict(removal), "removed": not dry_run} for removal in found]))
    elif dry_run:
        click.echo("dry run: nothing was removed")
    return EXIT_DONE


def _lines(found: list[Removal]) -> list[str]:
    rows = [
        [
            removal.run_id,
            removal.state,
            "-" if removal.step is None else str(removal.step),
            str(removal.files),
            size(removal.bytes),
            redact(removal.url),
        ]
        for removal in found
    ]
    notes = [f"{removal.run_id}: {note}" for removal in found for note in removal.notes]
    lines = table(rows, ["RUN", "STATE", "SAVED", "FILES", "SIZE", "DIRECTORY"])
    return [*lines, *(f"{click.style('note:', fg='yellow')} {note}" for note in notes)]
