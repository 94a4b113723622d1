"""`launch metrics RUN --phases`: where the time of each attempt went."""

from __future__ import annotations

import json

import click

from launchyard.errors import EXIT_DONE
from launchyard.launcher.format import json_text
from launchyard.run.rundir import RunDir


def print_phases(run: RunDir, *, one_a_line: bool, as_json: bool) -> int:
    """A table for each attempt, one after the other; as JSON an object each."""
    from launchyard.launcher.report.phases import phase_lines, read_phases

    found = list(read_phases(run))
    if as_json:
        click.echo(json_text([one.to_json() for one in found]))
    elif one_a_line:
        for one in found:
            click.echo(json.dumps(one.to_json()))
    elif not found:
        click.echo("no rows yet")
    else:
        click.echo("\n\n".join("\n".join(phase_lines(one)) for one in found))
    return EXIT_DONE
