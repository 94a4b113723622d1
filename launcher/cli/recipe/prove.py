"""`launch prove`: steps of a run, made again and compared."""

from __future__ import annotations

import random

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.launcher.cli.runs import JSON, RUN
from launchyard.launcher.format import duration, json_text
from launchyard.launcher.runs.facts import RunFacts
from launchyard.launcher.runs.find import find

_SOME = click.IntRange(min=1)


@click.command()
@RUN
@click.option("--points", default=3, show_default=True, type=click.IntRange(min=1), metavar="N", help="Checkpoints.")
@click.option(
    "--steps", default=3, show_default=True, type=click.IntRange(min=1), metavar="N", help="Steps after each."
)
@click.option("--seed", type=int, metavar="N", help="Which ones.  [default: others each time]")
@click.option(
    "--timeout", default=600.0, show_default=True, type=click.FloatRange(min=1), metavar="S", help="Seconds for each."
)
@JSON
def command(run: str, *, points: int, steps: int, seed: int | None, timeout: float, as_json: bool) -> int:
    """Make steps of a run again, from random checkpoints of it, and compare them with its rows.

    On as many CPU workers as made them, every bit must be equal; what GPUs made is compared to rounding, and its data
    and schedule to the bit. The run is only read. Exit code 1 if something differs.
    """
    from launchyard.launcher.prove.prove import prove, stretches

    found = find(run)
    seed = random.randrange(1 << 16) if seed is None else seed
    chosen = stretches(found, points=points, steps=steps, seed=seed)
    proofs = []
    for stretch in chosen:
        proof = prove(found, stretch, report=lambda line: None, timeout_seconds=timeout)
        proofs.append(proof)
        if not as_json:
            how = "to the bit" if stretch.exact else "to rounding"
            what = f"steps {stretch.start + 1} to {stretch.stop}, {how}, in {duration(proof.seconds)}"
            click.echo(f"✓ equal    {what}" if proof.holds else f"✗ differs  {what}")
            for line in proof.differences:
                click.echo(f"           {line}")
    holds = all(proof.holds for proof in proofs)
    if as_json:
        facts = {"run_id": RunFacts(found).run_id, "seed": seed, "holds": holds}
        click.echo(json_text({**facts, "stretches": [proof.to_json() for proof in proofs]}))
    return EXIT_DONE if holds else EXIT_FAILED
