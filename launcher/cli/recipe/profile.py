"""`launch profile`: the traces of a run, listed, summed up, fetched, and asked for while it runs."""

from __future__ import annotations

import re

import click
from pydantic import ValidationError

from launchyard.errors import EXIT_DONE, EXIT_FAILED, UserError
from launchyard.launcher.cli.paths import path_or_url
from launchyard.launcher.cli.runs import JSON, RUN
from launchyard.launcher.format import json_text, size, table
from launchyard.launcher.report.profiles import Profile
from launchyard.run.rundir import RunDir
from launchyard.storage.redact import redact
from launchyard.training.sections.metrics import ProfileConfig, TracedRanks


@click.command()
@RUN
@click.option("--steps", metavar="FIRST:LAST|+N", help="Trace these steps of a live run, or the next N that can be.")
@click.option("--ranks", metavar="R,R|all", help="Workers that trace them.  [default: 0]")
@click.option("--content", metavar="WORD,WORD", help="More in the trace: memory, shapes, stacks.")
@click.option("--no-wait", is_flag=True, help="Ask and return at once.")
@click.option("--out", type=path_or_url, metavar="FOLDER", help="Copy the files into a folder here.")
@JSON
def profile(
    run: str,
    *,
    steps: str | None,
    ranks: str | None,
    content: str | None,
    no_wait: bool,
    out: str | None,
    as_json: bool,
) -> int:
    """Show the traces of a run: paths, phases, operators and modules; or trace steps of a run that is alive.

    A trace opens in https://ui.perfetto.dev and chrome://tracing. Runs whose recipe names steps (profile.steps) trace
    them by themselves; weights and losses are the same with and without.
    """
    from launchyard.launcher.report.profiles import fetch_profiles, list_profiles
    from launchyard.launcher.runs.find import find

    if steps is None and (ranks or content or no_wait):
        raise click.UsageError("--ranks, --content and --no-wait are about steps to trace; add --steps")
    if no_wait and out:
        raise click.UsageError("--out copies what is there; it cannot go with --no-wait")
    found = find(run)
    if steps is not None:
        asked = _ask(found, steps, ranks or "0", content or "", no_wait=no_wait, quiet=as_json)
        if asked is None:
            return EXIT_DONE
        shown = asked
    else:
        shown = list_profiles(found)
    copied = fetch_profiles(found, shown, out) if out is not None else []
    if as_json:
        click.echo(json_text([one.to_json(found) for one in shown]))
    else:
        click.echo("\n".join([*_listed(found, shown), *(f"wrote {path}" for path in copied)]))
    return EXIT_FAILED if steps is not None and not shown else EXIT_DONE


def _ask(run: RunDir, steps: str, ranks: str, content: str, *, no_wait: bool, quiet: bool) -> list[Profile] | None:
    """What came of it; None if nobody waits."""
    from launchyard.launcher.report.profiles import ask, await_profiles, next_steps
    from launchyard.launcher.runs.find import reach_run
    from launchyard.launcher.runs.state import state_of

    reach_run(run)
    state = state_of(run)
    if not state.alive or state.attempt is None:
        raise UserError(
            f"{state.run_id} is not running ({state.state}), so there is no step to trace",
            hint=f"launch resume {state.run_id} 'profile.steps=[FIRST,LAST]' traces steps to come",
        )
    number = re.fullmatch(r"\+(\d+)", steps)
    window = next_steps(run, state, max(1, int(number[1]))) if number else _window(steps)
    config = _config(window, _ranks(ranks), content)
    asked = ask(run, state, config)
    first, last = asked.steps
    if no_wait or not quiet:
        click.echo(f"asked {state.run_id} to trace steps {first} to {last}; it is at {state.step or 0}", err=quiet)
    return None if no_wait else await_profiles(run, asked)


def _window(steps: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?::(\d+))?", steps)
    if found is None:
        raise click.UsageError(f"--steps {steps}: write FIRST:LAST, such as 100:102, or +3 for the next three")
    return int(found[1]), int(found[2] or found[1])


def _ranks(ranks: str) -> TracedRanks:
    if ranks == "all":
        return "all"
    try:
        return [int(rank) for rank in ranks.split(",")]
    except ValueError:
        raise click.UsageError(f"--ranks {ranks}: write numbers with commas between, such as 0,3, or all") from None


def _config(window: tuple[int, int], ranks: TracedRanks, content: str) -> ProfileConfig:
    words = [word for word in content.split(",") if word]
    known = ("memory", "shapes", "stacks")
    if other := [word for word in words if word not in known]:
        raise click.UsageError(f"--content {other[0]}: choose from {', '.join(known)}")
    try:
        return ProfileConfig.model_validate({"steps": list(window), "ranks": ranks, **dict.fromkeys(words, True)})
    except ValidationError as error:
        raise click.UsageError(f"--{error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _listed(run: RunDir, shown: list[Profile]) -> list[str]:
    """All of them in a table, and the newest one of the lowest rank in full."""
    if not shown:
        return ["no traces; profile.steps in a recipe names steps, and --steps asks a live run for some"]
    rows = [[one.steps, str(one.rank), str(one.attempt), size(one.bytes), _place(run, one)] for one in shown]
    lines = table(rows, ["STEPS", "RANK", "ATTEMPT", "SIZE", "TRACE"])
    newest = max(shown, key=lambda one: (one.first, -one.rank))
    text = run.read_text(newest.table).rstrip()
    return [*lines, "", text, "", "open a trace in https://ui.perfetto.dev (Open trace file)"]


def _place(run: RunDir, one: Profile) -> str:
    return redact(run.path(one.trace))
