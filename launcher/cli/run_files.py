"""`launch fsck` and `launch rm`: the files of a run, all checked, or removed for good."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED, UserError
from launchyard.launcher.cli.runs import JSON, RUN, SEVERAL
from launchyard.launcher.format import json_text, size, table
from launchyard.launcher.runs.remove import Removal, plan_removal, remove_run
from launchyard.storage.redact import redact


@click.command()
@RUN
@JSON
def fsck(run: str, *, as_json: bool) -> int:
    """Check every file of a run, and say what repairs it; exit 1 if anything is wrong.

    The chain: the recipe by the plan, the plan by the claims of the attempts, checkpoints by their manifests, rows by
    the steps that were made, data by its lists. Checkpoints are read as a whole; launch inspect DATA --verify does that
    with data. Changes nothing.
    """
    from launchyard.launcher.runs.find import find
    from launchyard.launcher.runs.fsck import check_run

    found = check_run(find(run))
    code = EXIT_FAILED if found.problems else EXIT_DONE
    if as_json:
        click.echo(json_text(found.to_json()))
        return code
    for problem in found.problems:
        click.echo(f"{click.style('damaged:', fg='red', bold=True)} {problem}")
    for link in found.not_recorded:
        click.echo(f"not recorded: {link}")
    if found.alive:
        click.echo("note: the run is alive; its files may have changed while they were read")
    count = len(found.problems)
    result = f"{count} problem{'s' * (count > 1)}" if count else "nothing is wrong"
    click.echo(f"{found.run_id}: {result} in {found.files} files and checkpoints")
    return code


@click.command()
@SEVERAL
@click.option("--yes", is_flag=True, help="Do not ask. Needed where nobody can answer.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed; remove nothing.")
@JSON
def rm(runs: tuple[str, ...], *, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Remove runs that have ended, or all of a sweep, with all their checkpoints, logs and metrics.

    All are checked before the first is removed. Links are removed, never followed. Prepared data stays: it is shared.
    """
    from launchyard.launcher.sweep.record import remove_sweep, sort_out, submitting

    sweeps, names = sort_out(runs)
    names += [run.url for sweep in sweeps for run in sweep.runs()]
    found = list({removal.url: removal for removal in map(plan_removal, names)}.values())
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
    for sweep in () if dry_run else sweeps:
        with submitting(sweep):
            remove_sweep(sweep)
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
