"""What a worker shows of itself: where it is scraped, who it is, and the recorder of its steps, put together.

Imports torch only for the recorder; the rest must be there before.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from launchyard.model.cost import flops_per_token
from launchyard.run.events import SAVED_BEFORE_STOPPING
from launchyard.run.goodput import AttemptFacts
from launchyard.run.layout import CODE
from launchyard.run.records import Target
from launchyard.run.rundir import RunDir
from launchyard.training.distributed import World, node_address
from launchyard.training.recipe import Recipe
from launchyard.training.spec import Workload
from launchyard.training.stop import REASONS

if TYPE_CHECKING:
    from launchyard.training.telemetry.recorder import Recorder


def serve_metrics(run: RunDir, world: World, recipe: Recipe) -> Any:
    """This rank's Prometheus endpoint, registered in the run directory."""
    from launchyard.training.telemetry.exporter import Exporter, NoExporter

    if not recipe.metrics.prometheus:
        return NoExporter()
    exporter = Exporter(rank=world.rank, host=recipe.metrics.host)
    url = exporter.url.replace("//0.0.0.0:", f"//{node_address()}:")
    run.register_target(world.attempt, Target(rank=world.rank, url=url, node=world.host, time=time.time()))
    exporter.state("starting")
    return exporter


def introduce(exporter: Any, run: RunDir, world: World, recipe: Recipe, workload: Workload, *, max_steps: int) -> None:
    """Which run this is, and what is known of it before its first step."""
    backend = run.job(world.attempt).backend if world.attempt in run.attempts() else ""
    named = {"run_name": workload.name, "recipe": recipe.name, "git_sha": git_sha(run), "backend": backend}
    exporter.set("trainer_run_info", 1, **named)
    exporter.set("trainer_world_size", world.world_size)
    exporter.set("trainer_target_steps", max_steps)
    if world.job_end is not None:
        exporter.set("trainer_job_end_timestamp_seconds", world.job_end)
    if world.grace_seconds is not None:
        exporter.set("trainer_preempt_grace_seconds", world.grace_seconds)
    for kind in ("permanent", "temporary"):
        for result in ("ok", "failed"):
            exporter.count("trainer_checkpoint_saves_total", 0, kind=kind, result=result)
    for reason in REASONS:
        exporter.count("trainer_preemptions_total", 0, source=reason)


def tell_past(exporter: Any, run: RunDir, before: list[AttemptFacts]) -> None:
    """What earlier attempts could hardly tell themselves, for they ended with it."""
    for facts in before:
        if facts.outcome is not None and facts.outcome.reason in REASONS:
            exporter.add("trainer_preemptions_total", source=facts.outcome.reason)
        for event in run.events(facts.attempt):
            if event["event"] == SAVED_BEFORE_STOPPING:
                exporter.set("trainer_preempt_save_duration_seconds", float(event["seconds"]))


def make_recorder(
    run: RunDir,
    world: World,
    recipe: Recipe,
    workload: Workload,
    *,
    exporter: Any,
    on_event: Any,
    device: Any,
    start_step: int,
    **parts: Any,
) -> Recorder:
    """With the account of all attempts and the trackers on rank 0. `parts`: more of what a Recorder takes."""
    from launchyard.training.telemetry.peak_flops import peak_of
    from launchyard.training.telemetry.recorder import Account, Recorder
    from launchyard.training.telemetry.trackers.open import open_trackers

    if world.leads:
        parts["account"] = Account(run, world.attempt, partial(tell_past, exporter, run))
        parts["trackers"] = open_trackers(
            run, recipe, workload.run_id, attempt=world.attempt, start_step=start_step, on_event=on_event
        )
    return Recorder(
        world,
        exporter=exporter,
        on_event=on_event,
        device=device,
        flops_per_token=flops_per_token(workload.model, recipe.data.seq_len),
        peak=peak_of(device, recipe.metrics.peak_flops, world.world_size),
        **parts,
    )


def git_sha(run: RunDir) -> str:
    try:
        return str(run.read_json(CODE).get("git_sha") or "")
    except (FileNotFoundError, ValueError):
        return ""
