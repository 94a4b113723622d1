"""The command `launch doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.cli.completion import complete_recipe
from launchyard.launcher.format import json_text

if TYPE_CHECKING:
    from launchyard.launcher.backends.findings import Finding
    from launchyard.launcher.doctor.devices import DeviceFacts
    from launchyard.launcher.doctor.fits import Again
    from launchyard.launcher.submit.launch import Ready
    from launchyard.storage.damage import JsonObject

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red")}


@click.command()
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...", shell_complete=complete_recipe)
@click.option("--cluster", default=FIRST, metavar="NAME|FILE", help="The place to check; default: this machine.")
@click.option("--no-job", is_flag=True, help="Do not run a short job on a node.")
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
def doctor(arguments: tuple[str, ...], *, cluster: str, no_job: bool, as_json: bool) -> int:
    """Check a place before a run: each finding is ok, a warning or an error with its fix.

    Of this machine it names each device, its memory and what is free of it; with a RECIPE also whether that fits, by
    its plan, and what would make it fit. Leaves nothing behind. Exit code 1 if there is an error.
    """
    from launchyard.launcher.backends.base import load_backend
    from launchyard.launcher.backends.cluster import load_cluster, reach_storage
    from launchyard.launcher.doctor.doctor import examine

    place = load_cluster(cluster)
    here = not load_backend(place.scheduler).TRAITS.scheduled
    ready = _planned(arguments, cluster, here=here)  # its mistakes come first
    reach_storage(place)
    findings = []
    facts: JsonObject = {}

    def found(some: Iterator[Finding]) -> None:
        for finding in some:
            findings.append(finding)
            if not as_json:
                _show(finding)

    if here:
        found(_of_devices(ready, facts))
    found(examine(place, with_job=not no_job))
    if as_json:
        told = {"cluster": place.name, "findings": [one.to_json() for one in findings], **facts}
        click.echo(json_text(told))
    return EXIT_FAILED if any(one.level == "error" for one in findings) else EXIT_DONE


def _show(finding: Finding) -> None:
    mark, colour = _MARKS[finding.level]
    click.echo(f"{click.style(mark, fg=colour)} {finding.what:<20} {finding.found}")
    if finding.fix:
        click.echo(f"  {'':<20} fix: {finding.fix}")


def _planned(arguments: tuple[str, ...], cluster: str, *, here: bool) -> Ready | None:
    """The launch of the recipe that was named, planned as a dry run."""
    if not arguments:
        return None
    from launchyard.launcher.cli.main import COMMANDS, split_arguments
    from launchyard.launcher.cli.typos import refuse_other_words
    from launchyard.launcher.recipe.load import parse_overrides
    from launchyard.launcher.submit.launch import Request, make_ready

    recipe, pairs = split_arguments(arguments)
    if recipe is None:
        raise click.UsageError(
            "which recipe? Name one before its keys, such as: launch doctor my.yaml train.device=cpu"
        )
    if not here:
        raise click.UsageError(
            f"a RECIPE is held against the devices of this machine, and {cluster} is another place; "
            "launch RECIPE --dry-run plans it there"
        )
    refuse_other_words(recipe, pairs, commands=COMMANDS)
    return make_ready(Request(recipe, cluster, parse_overrides(pairs)), dry_run=True)


def _of_devices(ready: Ready | None, facts: JsonObject) -> Iterator[Finding]:
    """What this machine computes with, and whether the recipe fits there; `facts` takes the same for programs."""
    from launchyard.launcher.backends.hardware import probe_host
    from launchyard.launcher.doctor.devices import device_findings, look_at_machine

    machine = look_at_machine(probe_host(gpus=False) if ready is None else ready.host)
    facts["machine"] = machine.model_dump(mode="json", exclude={"devices"})
    facts["devices"] = [device.to_json() for device in machine.devices]
    yield from device_findings(machine)
    if ready is not None:
        yield from _of_recipe(ready, machine.devices, facts)


def _of_recipe(ready: Ready, devices: tuple[DeviceFacts, ...], facts: JsonObject) -> Iterator[Finding]:
    from launchyard.launcher.doctor.fits import changes_of, fit_findings, fits_of

    plan = ready.plan
    fits = fits_of(plan, devices)
    least = min(fits, key=lambda one: one.available, default=None)
    changes = []
    if least is not None and least.tight:
        changes = changes_of(plan, ready.loaded.recipe, _planning(ready), least.available)
    facts["fits"] = {
        "recipe": plan.name,
        "planned": plan.memory,
        "devices": [
            {"device": one.device, "needed": one.needed, "available": one.available, "fits": one.fits} for one in fits
        ],
        "changes": [{"overrides": one.overrides, "needed": one.needed} for one in changes],
    }
    yield from fit_findings(fits, changes)


def _planning(ready: Ready) -> Again:
    """Plans the same launch with other values of keys."""
    from launchyard.launcher.plan.plan import Plan, PlanError
    from launchyard.launcher.submit.launch import planned_with
    from launchyard.training.recipe import Recipe, apply_overrides

    def again(keys: JsonObject) -> Plan | None:
        raw = ready.loaded.recipe.model_dump(mode="json", exclude_none=True)
        try:
            return planned_with(ready, Recipe.model_validate(apply_overrides(raw, keys)))
        except (PlanError, ValueError):  # keys that do not go together
            return None

    return again
