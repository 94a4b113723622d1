"""`launch RECIPE --dry-run --output FORM`: the launch as objects for another program to start. Creates nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launchyard.errors import EXIT_DONE

if TYPE_CHECKING:
    from launchyard.launcher.submit.launch import Request


def print_manifest(request: Request, form: str) -> int:
    from launchyard.launcher.backends.manifest import Launch, load_manifests
    from launchyard.launcher.submit.launch import make_ready
    from launchyard.launcher.submit.plan_text import recipe_text

    ready = make_ready(request, dry_run=True)
    plan = ready.plan
    backend = load_manifests(plan.scheduler, form)
    sources = [*plan.data.train, *plan.data.validation, *(one for found in plan.data.sets.values() for one in found)]
    launch = Launch(
        run_url=plan.run_url,
        recipe=recipe_text(ready.loaded.raw),
        folders=[source.folder for source in sources],
        own_code=ready.own is not None,
    )
    click.echo(backend.objects_text(form, ready.cluster, plan, launch), nl=False)
    return EXIT_DONE


def refuse_without_dry_run(*, dry_run: bool, as_json: bool, fast: bool) -> None:
    """UsageError for --output beside options that mean another way or another text."""
    if not dry_run:
        raise click.UsageError("--output prints what would be started elsewhere; it goes with --dry-run")
    if as_json or fast:
        raise click.UsageError("--output is the whole of what is printed; it cannot go with --json or --fast-dev-run")
