"""Commands to live with runs: status, logs, stop, cancel, resume, why, metrics, checkpoints, drill.

Each reads or asks through the run directory and prints the result; the work itself is in the file of that name.
"""

from __future__ import annotations

import sys
import time
from typing import Any, cast

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED, LaunchError, RecipeErrors, StartedError, UserError
from launchyard.launcher.backends.base import load_backend, owner_alive
from launchyard.launcher.cli.completion import complete_cluster, complete_pair, complete_run, complete_several
from launchyard.launcher.format import clock, count, duration, json_text, table
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.find import find, find_to_look, reach_run
from launchyard.launcher.runs.overview.states import overview
from launchyard.launcher.runs.state import RunState, state_of
from launchyard.run.layout import SAMPLES, STEPS, TASKS, VALIDATION
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.storage.damage import JsonObject
from launchyard.storage.files import is_remote
from launchyard.storage.redact import redact
from launchyard.training.spec import OWN_BATCHES

STOP_RETRY_SECONDS = 3600.0
RUN = click.argument("run", metavar="RUN", shell_complete=complete_run)
SEVERAL = click.argument("runs", metavar="RUN...", nargs=-1, required=True, shell_complete=complete_several)
JSON = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
_COLOURS = {
    "running": "green",
    "completed": "green",
    "failed": "red",
    "lost": "red",
    "unknown": "yellow",
    "unreachable": "red",
    "stopped": "yellow",
}


@click.command()
@click.argument("runs", metavar="[RUN | SWEEP]...", nargs=-1, shell_complete=complete_several)
@JSON
@click.option("--watch", is_flag=True, help="Keep it up to date until the run ends, or Ctrl-C.")
def status(runs: tuple[str, ...], *, as_json: bool, watch: bool) -> int:
    """Show all runs, or those named. RUN: id, its beginning or end, name, `latest`, path or URL."""
    from launchyard.launcher.sweep.record import find_sweep

    run = runs[0] if runs else None
    if watch:
        if len(runs) > 1:
            raise click.UsageError("--watch is for one run, or for all; name one, or none")
        from launchyard.launcher.watch.live import watch as watch_one
        from launchyard.launcher.watch.live import watch_all

        if run is None and as_json:
            raise click.UsageError("--json --watch is for one run; name it")
        if run is None or (not as_json and find_sweep(run) is not None):
            return watch_all(lambda: _status_lines(run))
        return watch_one(find(run), as_json=as_json)
    if as_json:
        found = [state.to_json() for state in (() if runs else overview())]
        found += map(_facts_of, runs)
        click.echo(json_text(found[0] if len(runs) == 1 else found))
    else:
        for one in runs or (None,):
            click.echo("\n".join(_status_lines(one)))
    return EXIT_DONE


def _facts_of(name: str) -> JsonObject:
    """Of a sweep or a run."""
    from launchyard.launcher.sweep.record import find_sweep

    sweep = find_sweep(name)
    if sweep is None:
        return state_of(find_to_look(name)).to_json()
    from launchyard.launcher.sweep.state import sweep_json

    return sweep_json(sweep)


def _status_lines(run: str | None) -> list[str]:
    if run is not None:
        from launchyard.launcher.sweep.record import find_sweep

        sweep = find_sweep(run)
        if sweep is None:
            return _one_status(state_of(find_to_look(run)))
        from launchyard.launcher.sweep.state import sweep_lines

        return sweep_lines(sweep)
    states = overview()[::-1]
    if not states:
        return ["no runs yet; launch --local starts one"]
    rows = [_status_row(state) for state in states]
    coloured = [_COLOURS.get(state.state) for state in states]
    lines = table(rows, ["RUN", "STATE", "STEP", "LOSS", "TOKENS/S", "ETA", "SAVED", "SINCE"])
    styled = [
        line.replace(state.state, click.style(state.state, fg=colour), 1) if colour else line
        for line, state, colour in zip(lines[1:], states, coloured, strict=True)
    ]
    return [lines[0], *styled]


def _status_row(state: RunState) -> list[str]:
    def cell(value: Any, form: Any = str) -> str:
        return "-" if value is None else str(form(value))

    return [
        state.run_id,
        state.state,
        cell(state.step) + (f"/{state.max_steps}" if state.max_steps else ""),
        cell(state.loss, lambda loss: f"{loss:.3f}"),
        cell(state.tokens_per_second, count),
        cell(state.eta_seconds, duration),
        cell(state.checkpoint),
        cell(state.since, lambda since: f"{duration(max(0.0, time.time() - since))} ago"),
    ]


def _one_status(state: RunState) -> list[str]:
    from launchyard.launcher.runs.state import progress_text

    owner = f", process {state.pid} on {state.host}" + ("" if state.alive else " (gone)")
    facts = [
        ("state", state.state + (f" ({state.reason})" if state.reason else "")),
        ("progress", progress_text(state)),
        ("attempt", f"{state.attempt}{owner * bool(state.host)}" if state.attempt is not None else "none"),
        ("went on", f"from step {state.started_from}, of {state.source}" if state.source else ""),
        ("job", f"{state.job_id}: {state.queue or state.state}" if state.job_id else state.queue),
        ("starts", f"about {clock(state.start, seconds=False)}" if state.start else ""),
        ("since", f"{duration(max(0.0, time.time() - state.since))} ago" if state.since else ""),
        ("sources", _sources_text(state.source_tokens or {})),
        ("held out", ", ".join(f"{name} {loss:.4f}" for name, loss in (state.validation_losses or {}).items())),
        ("checkpoint", f"step {state.checkpoint}" if state.checkpoint is not None else "none"),
        ("directory", state.url),
        ("message", state.message),
    ]
    lines = [state.run_id, *(f"  {label:<11}{value}" for label, value in facts if value)]
    if state.alive:
        return [*lines, f"  launch logs -f {state.run_id}    launch stop {state.run_id}"]
    return [*lines, f"  launch why {state.run_id}" + (f"    launch resume {state.run_id}" * state.resumable)]


def _sources_text(tokens: dict[str, int]) -> str:
    """Of a mixture, the tokens that were read of each source."""
    total = max(1, sum(tokens.values()))
    return ", ".join(f"{name} {count(read)} tokens ({read / total:.1%})" for name, read in tokens.items())


@click.command()
@RUN
@click.option("-f", "--follow", "follow_on", is_flag=True, help="Go on until the run ends.")
@click.option("--rank", type=click.IntRange(min=0), metavar="R", help="Of one worker only.")
@click.option("--attempt", type=click.IntRange(min=0), metavar="A", help="Of another attempt than the newest.")
@click.option("--tail", "last", type=click.IntRange(min=1), metavar="N", help="The last N lines of each log only.")
def logs(run: str, *, follow_on: bool, rank: int | None, attempt: int | None, last: int | None) -> int:
    """Print the logs of a run, all workers in one, each line with its rank."""
    from launchyard.launcher.runs.logs import follow_logs, pick_attempt, print_logs

    found = find(run)
    if follow_on:
        try:
            follow_logs(found, attempt=attempt, rank=rank, write_line=click.echo, last=last)
        except KeyboardInterrupt:
            click.echo("the run goes on", err=True)
        return EXIT_DONE
    print_logs(found, attempt=pick_attempt(found, attempt), rank=rank, write_line=click.echo, last=last)
    return EXIT_DONE


@click.command()
@SEVERAL
@click.option("--no-wait", is_flag=True, help="Ask and return at once.")
@JSON
def stop(runs: tuple[str, ...], *, no_wait: bool, as_json: bool) -> int:
    """Save after this step and stop; launch resume goes on from there without losing a step."""
    found = _found(runs)
    asked = _all_alive(found, "stop")
    for run, state in asked:
        reach_run(run)
        if state.state == "pending":  # nothing runs that could save
            _cancel(run)
        else:
            run.request_stop("stop")
            if not (no_wait or as_json):
                click.echo(f"asked {state.run_id} to save and stop")
    for run, state in asked:
        if state.state != "pending" and not no_wait:
            _wait_for_end(reach_run(run))
    ended = list(map(state_of, map(reach_run, found)))
    _print_ends(ended, as_json)
    return EXIT_FAILED if any(state.state in ("failed", "lost") for state in ended) else EXIT_DONE


@click.command()
@SEVERAL
@JSON
def cancel(runs: tuple[str, ...], *, as_json: bool) -> int:
    """End runs now, without saving. Earlier checkpoints stay."""
    found = _found(runs)
    for run, _ in _all_alive(found, "cancel"):
        _cancel(reach_run(run))
    _print_ends(list(map(state_of, map(reach_run, found))), as_json)
    return EXIT_DONE


def _found(names: tuple[str, ...]) -> list[RunDir]:
    """Each run once, however often it is named. All are looked for before anything is done to one.

    Of a sweep, those that are alive; no point of it is submitted any more.
    """
    from launchyard.launcher.sweep.record import sort_out, stop_submitting

    sweeps, others = sort_out(names)
    named = list(map(find, others))
    for sweep in sweeps:
        stop_submitting(sweep)
        click.echo(f"{sweep.sweep_id}: no more points; go on with: launch sweep --resume {sweep.sweep_id}", err=True)
        named += [run for run in sweep.runs() if owner_alive(run)]
    return list({run.url: run for run in named}.values())


def _cancel(run: RunDir) -> None:
    from launchyard.launcher.agent.ownership import newest_job

    job = newest_job(run)
    assert job is not None
    load_backend(job.backend).cancel(run, job)


def _wait_for_end(run: RunDir) -> None:
    with retry.retry_budget(STOP_RETRY_SECONDS):  # it was asked: no store that is away changes that
        while (state := state_of(run)).alive and state.state != "suspended":
            time.sleep(1.0 if state.job_id else 0.2)  # a scheduler is asked each time


def _all_alive(found: list[RunDir], verb: str) -> list[tuple[RunDir, RunState]]:
    """Each run with its state. UserError names those that are not alive, and what to type for the others."""
    asked: list[tuple[RunDir, RunState]] = []
    problems: list[str] = []
    for run in found:
        try:
            asked.append((run, _need_alive(state_of(reach_run(run)), verb)))
        except UserError as error:
            problems.append(str(error))
    if problems:
        rest = " ".join(state.run_id for _, state in asked)
        hint = f"nothing was done to the others: launch {verb} {rest}" if asked else "launch status"
        raise RecipeErrors(problems, hint=hint)
    return asked


def _need_alive(state: RunState, verb: str) -> RunState:
    if state.state == "unknown" and not state.alive:
        raise LaunchError(
            f"job {state.job_id} of {state.run_id} may wait or run: {state.queue}", hint="try again when it does"
        )
    if not state.alive:
        raise UserError(
            f"{state.run_id} is not running ({state.state}), so there is nothing to {verb}", hint="launch status"
        )
    return state


def _print_ends(states: list[RunState], as_json: bool) -> None:
    """One run as an object of JSON, several as a list."""
    if as_json:
        facts = [state.to_json() for state in states]
        click.echo(json_text(facts[0] if len(facts) == 1 else facts))
        return
    for state in states:
        _print_end(state)


def _print_end(state: RunState) -> None:
    if state.alive:
        when = f". Now it is suspended: {state.queue}" if state.state == "suspended" else ""
        click.echo(f"{state.run_id} was asked; launch status {state.run_id} shows when it has stopped{when}")
    else:
        saved = f"saved at step {state.checkpoint}" if state.checkpoint is not None else "nothing was saved"
        click.echo(f"{state.run_id} {state.state} ({state.reason}), {saved}; go on with: launch resume {state.run_id}")


@click.command()
@RUN
@click.argument("pairs", nargs=-1, metavar="[KEY=VALUE]...", shell_complete=complete_pair)
@click.option("--cluster", metavar="NAME|FILE", shell_complete=complete_cluster, help="Another place to go on in.")
@click.option("--nodes", type=click.IntRange(min=1), metavar="N", help="Machines; any number goes on exactly.")
@click.option("--gpus-per-node", type=click.IntRange(min=0), metavar="N", help="GPUs of each.")
@click.option("--from-step", type=click.IntRange(min=1), metavar="N", help="Go back to the checkpoint of step N.")
@click.option("--from-scratch", is_flag=True, help="Begin again at step 0.")
@click.option("--dry-run", is_flag=True, help="Print what would happen; change and start nothing.")
@click.option(
    "--detach/--follow", "detach", default=None, help="Return at once, or watch.  [default: watch local runs]"
)
@JSON
def resume(
    run: str,
    *,
    pairs: tuple[str, ...],
    cluster: str | None,
    nodes: int | None,
    gpus_per_node: int | None,
    from_step: int | None,
    from_scratch: bool,
    dry_run: bool,
    detach: bool | None,
    as_json: bool,
) -> int:
    """Go on from the newest checkpoint, on as many workers as there are now, with changed KEY=VALUE if need be."""
    from launchyard.launcher.recipe.load import parse_overrides
    from launchyard.launcher.submit.launch import next_commands
    from launchyard.launcher.submit.resume import make_ready

    if as_json and detach is False:
        raise click.UsageError("--json prints one object and returns; it cannot go with --follow")
    _refuse_sweep(run)
    found = find(run)
    flags = {"resources.nodes": nodes, "resources.gpus_per_node": gpus_per_node}
    changes = parse_overrides(list(pairs)) | {key: value for key, value in flags.items() if value is not None}
    if from_scratch and from_step:
        raise click.UsageError("--from-scratch begins at step 0; it cannot go with --from-step")
    ready = make_ready(found, changes, from_step=0 if from_scratch else from_step, cluster=cluster)

    def report(line: str) -> None:
        if not as_json:
            click.echo(line)

    for line in _resume_lines(ready):
        report(line)
    if dry_run:
        report("dry run: nothing was changed or started")
        if as_json:
            click.echo(json_text({**ready.to_json(), "plan": ready.plan.model_dump(mode="json")}))
        return EXIT_DONE
    if detach is None:
        detach = as_json or load_backend(ready.plan.scheduler).TRAITS.scheduled
    presses = 0
    ready.make_known()
    try:
        job = ready.submit(report=report)
    except StartedError as error:
        if detach:
            raise
        job = cast("Job", error.job)
        presses = 1
    if as_json:
        click.echo(json_text({**ready.to_json(), "job": job.model_dump(mode="json")}))
        return EXIT_DONE
    if detach:
        click.echo("\n".join(next_commands(ready.state.run_id)))
        return EXIT_DONE
    from launchyard.launcher.watch.follow import follow

    return follow(ready.target, job=job, presses=presses)


def _refuse_sweep(name: str) -> None:
    from launchyard.launcher.sweep.record import find_sweep

    if (sweep := find_sweep(name)) is not None:
        raise UserError(f"{name}: a sweep, not a run", hint=f"launch sweep --resume {sweep.sweep_id}")


def _resume_lines(ready: Any) -> list[str]:
    plan = ready.plan
    state = ready.state
    kind = "CPU" if plan.device == "cpu" else "GPU"
    workers = f"{plan.world_size} {kind} worker{'s' if plan.world_size > 1 else ''}"
    saved = (
        f"from step {state.checkpoint}" if state.checkpoint is not None else "from the beginning (nothing was saved)"
    )
    lines = [f"✓ resume   {state.run_id} {saved} of {plan.max_steps}, on {workers}"]
    if ready.cluster is not None:
        on_nodes = ready.target.local and load_backend(plan.scheduler).TRAITS.scheduled
        sees = f"; its nodes must see {ready.run.url}" if on_nodes else ""
        sees = f"; copied to {redact(ready.copy_to.url)}" if ready.copy_to else sees
        lines.append(f"✓ place    {plan.cluster} ({plan.scheduler}){sees}")
        folders = [source.folder for source in plan.data.train if source.folder != OWN_BATCHES]
        local_data = [folder for folder in folders if not is_remote(folder)]
        if ready.copy_to and local_data:
            lines.append(f"! note     its nodes must see its data, {local_data[0]}, or a copy: data.source=PLACE")
    lines += [f"✓ changed  {change}" for change in ready.changes]
    if earlier := [key for key in ready.overrides if all(change.key != key for change in ready.changes)]:
        lines.append(f"✓ earlier  {', '.join(f'{key}={ready.overrides[key]}' for key in earlier)}")
    return lines + [f"! note     {note}" for note in plan.notes]


@click.command()
@RUN
@JSON
def why(run: str, *, as_json: bool) -> int:
    """Explain why a run ended, or its state: one cause over all attempts and workers, and what to do."""
    import shutil
    import textwrap

    from launchyard.launcher.runs.why import explain

    found = explain(find(run))
    if as_json:
        click.echo(json_text(found.to_json()))
    else:
        width = min(100, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
        click.echo(textwrap.fill(found.text, width, break_long_words=False, break_on_hyphens=False))
    return EXIT_DONE


@click.command()
@RUN
@click.option("--jsonl", is_flag=True, help="Every row of the surviving history, one per step.")
@click.option("--validation", "kind", flag_value=VALIDATION, help="The rows of the validation instead.")
@click.option("--tasks", "kind", flag_value=TASKS, help="The scores of tasks instead.")
@click.option("--samples", "kind", flag_value=SAMPLES, help="The texts that it has written instead.")
@click.option("--phases", is_flag=True, help="Where the time of each attempt went instead.")
@click.option("--json", "as_json", is_flag=True, help="The same as --jsonl, as one list.")
def metrics(run: str, *, jsonl: bool, kind: str | None, phases: bool, as_json: bool) -> int:
    """Print the metrics of a run: one row for each step that counts, of any attempt."""
    from launchyard.launcher.report.metric_tables import rows_as_json, score_table, step_table, validation_table

    if phases:
        from launchyard.launcher.cli.recipe.phases import print_phases

        return print_phases(find(run), one_a_line=jsonl, as_json=as_json)
    found = find(run).rows(kind or STEPS)
    if jsonl or as_json:
        sys.stdout.writelines(rows_as_json(found, one_a_line=jsonl))
        return EXIT_DONE
    if kind is None:
        click.echo("\n".join(step_table(found)) or "no rows yet")
        return EXIT_DONE
    rows = list(found)
    if not rows:
        click.echo("no rows yet")
    elif kind == TASKS:
        click.echo("\n".join(score_table(rows)))
    elif kind == SAMPLES:
        click.echo("\n\n".join(f"step {row['step']}\n{row['prompt']}{row['text']}" for row in rows))
    else:
        click.echo("\n".join(validation_table(rows)))
    return EXIT_DONE


@click.command()
@RUN
@click.option("--verify", "verify_all", is_flag=True, help="Read and hash everything; exit 1 if anything is damaged.")
@JSON
def checkpoints(run: str, *, verify_all: bool, as_json: bool) -> int:
    """List the committed checkpoints of a run, oldest first."""
    from launchyard.launcher.runs.checkpoints import list_saved

    found = find(run)
    saved = list_saved(found, verify_all=verify_all)
    if as_json:
        click.echo(json_text([entry.to_json() for entry in saved]))
    elif not saved:
        click.echo(f"{RunFacts(found).run_id} has no checkpoint yet")
    else:
        head = ["STEP", "KIND", "SIZE", "WORKERS", "AGE", *(["VERIFIED"] if verify_all else [])]
        click.echo("\n".join(table([entry.row(verified=verify_all) for entry in saved], head)))
    for entry in saved if not as_json else ():
        if reason := entry.foreign or entry.late:
            label = click.style(f"{entry.label}:", fg="yellow", bold=True)
            click.echo(f"{label} step {entry.step}: {reason}", err=True)
    faults = [fault for entry in saved for fault in entry.faults]
    for fault in faults if not as_json else ():
        click.echo(f"{click.style('damaged:', fg='red', bold=True)} {fault}", err=True)
    return EXIT_FAILED if faults else EXIT_DONE


@click.command()
@click.argument("kind", type=click.Choice(["preempt", "kill", "node-loss", "freeze"]))
@RUN
@JSON
def drill(kind: Any, run: str, *, as_json: bool) -> int:
    """Inject a fault into a live run, here or on a cluster, and measure the recovery.

    preempt: by a job that may take its node, where the scheduler has such; else the notice alone. kill: SIGKILL of one
    worker. node-loss: SIGKILL of all its processes on a node. freeze: SIGSTOP of all its processes on a node for 15 s;
    where that is the only one, or nobody would notice, of one worker until its agent does.
    """
    from launchyard.launcher.runs.drill import rehearse
    from launchyard.launcher.submit.resume import make_ready

    found = find(run)
    result = rehearse(found, kind, again=lambda: make_ready(found, {}).submit(report=lambda line: None))
    if as_json:
        click.echo(json_text(result.to_json()))
    else:
        click.echo("\n".join(result.lines()))
    return EXIT_DONE


__all__ = ["cancel", "checkpoints", "drill", "logs", "metrics", "resume", "status", "stop", "why"]
