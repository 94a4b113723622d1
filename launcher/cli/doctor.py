"""The command `launch doctor`."""

from __future__ import annotations

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.format import json_text

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@click.command()
@click.option("--cluster", default=FIRST, metavar="NAME|FILE", help="The place to check; default: this machine.")
@click.option("--no-job", is_flag=True, help="Do not run a short job on a node.")
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
def doctor(cluster: str, *, no_job: bool, as_json: bool) -> int:
    """Check a place before a run: each finding is ok, a warning or an error with its fix.

    Leaves nothing behind. Exit code 1 if there is an error.
    """
    from launchyard.launcher.backends.cluster import load_cluster, reach_storage
    from launchyard.launcher.doctor.doctor import examine

    place = load_cluster(cluster)
    reach_storage(place)
    findings = []
    for finding in examine(place, with_job=not no_job):
        findings.append(finding)
        if not as_json:
            mark, colour = _MARKS[finding.level]
            click.echo(f"{click.style(mark, fg=colour)} {finding.what:<20} {finding.found}")
            if finding.fix:
                click.echo(f"  {'':<20} fix: {finding.fix}")
    if as_json:
        click.echo(json_text({"cluster": place.name, "findings": [one.to_json() for one in findings]}))
    return EXIT_FAILED if any(one.level == "error" for one in findings) else EXIT_DONE
