"""`launch fsck`: every file of a run against its chain."""

from __future__ import annotations

import json

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.launcher.cli.completion import complete_run


@click.command()
@click.argument("run", metavar="RUN", shell_complete=complete_run)
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
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
        click.echo(json.dumps(found.to_json(), indent=1))
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
