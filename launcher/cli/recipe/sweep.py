"""`launch sweep`: many runs of one recipe. Parses, calls launcher/sweep, and prints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, UserError
from launchyard.launcher.cli.completion import complete_cluster, complete_recipe, complete_sweep
from launchyard.launcher.format import json_text
from launchyard.storage.redact import redact

if TYPE_CHECKING:
    from launchyard.launcher.sweep.plan import ReadySweep, SweepRequest
    from launchyard.launcher.sweep.record import Sweep
    from launchyard.storage.damage import JsonObject

Option = str | int | bool | None


def run_sweep(arguments: tuple[str, ...], **options: Option) -> int:
    """Launch a recipe many times, with other values of some keys.

    A key with a list is tried with each of its values, and all keys with lists in all combinations; with --random N it
    may have a range instead: log:1e-5..1e-3, uniform:0..0.2, int:1..8. The values of a key that holds a list stand in
    one more pair of brackets. lr is short for optimizer.lr, and so is the last part of any key where it is clear.

    Every point is an ordinary run. All are checked before the first is started.

    \b
      launch sweep my.yaml lr=[1e-4,3e-4,1e-3] train.seed=[1,2]
      launch sweep my.yaml --random 20 lr=log:1e-5..1e-3 model.dim=[256,512]
      launch status SWEEP
      launch sweep --resume SWEEP
    """
    if options["resume"] is not None:
        return _resume(str(options["resume"]), arguments, options)
    from launchyard.launcher.sweep.plan import plan_sweep

    planned = plan_sweep(_request(arguments, options), dry_run=bool(options["dry_run"]))
    if options["dry_run"]:
        _show_plans(planned, as_json=bool(options["as_json"]))
        return EXIT_DONE
    from launchyard.launcher.sweep.record import record_sweep

    sweep = planned.sweep
    report = _reporter(options)
    n = len(sweep.points)
    report(f"✓ {'sweep':<8} {sweep.sweep_id} · {n} point{'s' * (n > 1)} of {sweep.source} · {redact(sweep.url)}")
    for note in planned.notes:
        report(f"! {'note':<8} {note}")
    record_sweep(sweep, planned.cluster.storage.options)
    return _start(sweep, options, report)


def _request(arguments: tuple[str, ...], options: dict[str, Option]) -> SweepRequest:
    from launchyard.launcher.backends.section import FIRST
    from launchyard.launcher.cli.main import COMMANDS, split_arguments
    from launchyard.launcher.cli.typos import refuse_other_words
    from launchyard.launcher.sweep.plan import SweepRequest
    from launchyard.launcher.sweep.points import parse_axes

    recipe, pairs = split_arguments(arguments)
    if recipe is None:
        raise click.UsageError("which recipe? Name one, then the keys to vary, such as lr=[1e-4,3e-4]")
    refuse_other_words(recipe, pairs, commands=COMMANDS)
    axes = parse_axes(pairs)
    flags = {
        "resources.nodes": options["nodes"],
        "resources.gpus_per_node": options["gpus_per_node"],
        "name": options["name"],
    }
    fixed = axes.fixed | {key: value for key, value in flags.items() if value is not None}
    points, design = _design(axes.varied, options)
    at_once = options["at_once"]
    url = options["run_url"]
    return SweepRequest(
        recipe=recipe,
        cluster=str(options["cluster"] or FIRST),
        fixed=fixed,
        points=points,
        design=design,
        at_once=at_once if isinstance(at_once, int) else None,
        url=url if isinstance(url, str) else None,
    )


def _design(varied: object, options: dict[str, Option]) -> tuple[list[JsonObject], JsonObject]:
    """The points, and how they were made."""
    from launchyard.launcher.sweep.points import HOW_RANGES, HOW_VALUES, draw_points, grid, read_points

    assert isinstance(varied, dict)
    file = options["file"]
    n = options["random"]
    seed = options["seed"]
    if seed is not None and n is None:
        raise click.UsageError("--seed is that of --random N")
    if file is not None:
        if varied or n is not None:
            raise click.UsageError("--file holds all points; it cannot go with --random or keys with several values")
        return read_points(str(file)), {"kind": "file", "file": os.path.abspath(str(file))}
    if not varied:
        raise UserError("nothing varies, so this is one run: launch RECIPE", hint=f"{HOW_VALUES}; {HOW_RANGES}")
    if isinstance(n, int):
        seed = seed if isinstance(seed, int) else 0
        return draw_points(varied, n, seed), {"kind": "random", "n": n, "seed": seed}
    return grid(varied), {"kind": "grid"}


def _show_plans(planned: ReadySweep, *, as_json: bool) -> None:
    from launchyard.launcher.sweep.state import plan_lines

    if not as_json:
        click.echo("\n".join([*plan_lines(planned), "dry run: nothing was created or started"]))
        return
    sweep = planned.sweep
    points = [
        {**point.model_dump(mode="json"), "recipe": ready.loaded.raw, "plan": ready.plan.model_dump(mode="json")}
        for point, ready in zip(sweep.points, planned.ready, strict=True)
    ]
    facts = sweep.model_dump(mode="json", include={"sweep_id", "url", "source", "cluster", "at_once", "design"})
    click.echo(json_text({**facts, "points": points}))


def _resume(name: str, arguments: tuple[str, ...], options: dict[str, Option]) -> int:
    from launchyard.launcher.sweep.record import clear_stopped, need_sweep

    others = [key for key, value in options.items() if value and key not in ("resume", "as_json", "detach")]
    if arguments or others:
        raise click.UsageError(
            "--resume goes on with a sweep as it was planned: no other words but --detach and --json"
        )
    sweep = need_sweep(name)
    clear_stopped(sweep)
    return _start(sweep, options, _reporter(options))


def _reporter(options: dict[str, Option]) -> Callable[[str], None]:
    as_json = bool(options["as_json"])
    return lambda line: click.echo(line, err=as_json)


def _start(sweep: Sweep, options: dict[str, Option], report: Callable[[str], None]) -> int:
    from launchyard.launcher.backends.cluster import load_cluster
    from launchyard.launcher.sweep.record import submitting
    from launchyard.launcher.sweep.submit import stays, submit_points

    waits = stays(sweep, load_cluster(sweep.cluster))
    if options["detach"] and waits:
        _detach(sweep, report)
        return _end(sweep, options, waited=False)
    try:
        with submitting(sweep):
            submit_points(sweep, report=report)
    except KeyboardInterrupt:
        report(f"runs that were started go on; the rest: launch sweep --resume {sweep.sweep_id}")
        return EXIT_INTERRUPTED
    except Exception:
        report(f"! {'sweep':<8} not all points were submitted; go on with: launch sweep --resume {sweep.sweep_id}")
        raise
    return _end(sweep, options, waited=waits)


def _detach(sweep: Sweep, report: Callable[[str], None]) -> None:
    """The same, in a process that outlives this one and its terminal."""
    from launchyard.host.folders import user_state_folder
    from launchyard.host.processes import python_argv

    path = user_state_folder("sweeps") / f"{sweep.sweep_id}.log"
    argv = [*python_argv(sys.executable), "-m", "launchyard", "sweep", "--resume", sweep.sweep_id]
    with path.open("ab") as log:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    child.returncode = 0  # it is meant to outlive us
    report(f"✓ {'detached':<8} process {child.pid} starts one point after another; its output: {path}")


def _end(sweep: Sweep, options: dict[str, Option], *, waited: bool) -> int:
    from launchyard.launcher.sweep.state import sweep_json, sweep_lines

    facts = sweep_json(sweep)
    if options["as_json"]:
        click.echo(json_text(facts))
    elif waited:
        click.echo("\n".join(["", *sweep_lines(sweep)]))
    else:
        click.echo(f"  status   launch status {sweep.sweep_id:<24}   stop     launch stop {sweep.sweep_id}")
    done = all(point["state"] == "completed" for point in facts["points"])
    return EXIT_DONE if done or not waited else EXIT_FAILED


sweep_command = click.Command(
    "sweep",
    callback=run_sweep,
    help=run_sweep.__doc__,
    params=[
        click.Argument(["arguments"], nargs=-1, metavar="[RECIPE] [KEY=VALUES]...", shell_complete=complete_recipe),
        click.Option(["--random"], type=click.IntRange(min=1), metavar="N", help="Draw N points, no two the same."),
        click.Option(
            ["--seed"], type=int, metavar="S", help="Of --random: the same seed, the same points.  [default: 0]"
        ),
        click.Option(["--file"], metavar="FILE", help="Points from rows: .yaml, .csv (keys in its head) or .jsonl."),
        click.Option(
            ["--at-once"],
            type=click.IntRange(min=1),
            metavar="N",
            help="So many runs at a time.  [default: 1 on this machine, all with a scheduler]",
        ),
        click.Option(
            ["--resume"],
            metavar="SWEEP",
            shell_complete=complete_sweep,
            help="Submit what is missing of a sweep, and resume what has failed.",
        ),
        click.Option(
            ["--cluster"], metavar="NAME|FILE", shell_complete=complete_cluster, help="Where to run.  [default: local]"
        ),
        click.Option(["--nodes"], type=click.IntRange(min=1), metavar="N", help="Machines of each run."),
        click.Option(["--gpus-per-node"], type=click.IntRange(min=0), metavar="N", help="GPUs of each; default: all."),
        click.Option(
            ["--name"], metavar="NAME", help="Name of the runs, before their number.  [default: the recipe's]"
        ),
        click.Option(["--run-url"], metavar="URL", help="Where the folder of the sweep goes.  [default: runs/ID]"),
        click.Option(["--dry-run"], is_flag=True, help="Print the plans of all points; create and start nothing."),
        click.Option(["--detach"], is_flag=True, help="Return at once also where runs are of this machine."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print facts as JSON."),
    ],
)
