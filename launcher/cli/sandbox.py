"""`launch sandbox`: small real services on this machine, started, ended, shown, and made known to a shell."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Any

import click

from launchyard.errors import EXIT_DONE, EXIT_FAILED
from launchyard.launcher.format import json_text
from launchyard.launcher.sandbox import KINDS, Facts, load_sandbox

KIND = click.argument("kind", type=click.Choice(KINDS), metavar="|".join(KINDS))
JSON = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")


@click.group()
def sandbox() -> None:
    """Start or end a small real service on this machine, for trying things out.

    \b
    s3          an S3 server with keys of its own
    slurm       a SLURM of several nodes with fake GPUs (Linux)
    ray         a Ray of several nodes (Linux)
    monitoring  a Prometheus that finds all your runs, with alerts, and Grafana where there is one

    Each is yours alone, in your user's folders, on loopback.
    """


@sandbox.group()
def up() -> None:
    """Start one, or find it running."""


@up.command("s3")
@JSON
def up_s3(*, as_json: bool) -> int:
    """An S3 server; its earlier data is there again."""
    return _up("s3", as_json=as_json)


@up.command("slurm")
@click.option("--nodes", type=click.IntRange(1, 64), help="Nodes; default 4.")
@click.option("--gpus-per-node", type=click.IntRange(0, 16), help="Fake GPUs of each node; default 2.")
@click.option("--cpus-per-node", type=click.IntRange(1, 256), help="CPUs that each node says it has; default 8.")
@click.option("--accounting/--no-accounting", default=None, help="With slurmdbd and sacct; default without.")
@click.option("--proctrack", type=click.Choice(["linuxproc", "cgroup"]), help="How SLURM follows processes.")
@click.option("--user-signal/--no-user-signal", default=None, help="Preemption sends the signal that a job asked for.")
@click.option("--grace-seconds", type=click.IntRange(0), help="Notice before preemption in `spot`; default 20.")
@click.option("--kill-wait-seconds", type=click.IntRange(0), help="From SIGTERM to SIGKILL; default 5.")
@JSON
def up_slurm(*, as_json: bool, **asked: Any) -> int:
    """A SLURM whose nodes are this machine under several names, with fake GPUs.

    Partitions: batch (the default), spot and prod, over the same nodes; a job in prod takes nodes from jobs in spot.
    Needs Debian's or Ubuntu's slurmctld, slurmd, slurm-client and munge, which root gets installed by apt-get. Other
    users of the machine cannot use it. It always starts without jobs.
    """
    return _up("slurm", as_json=as_json, **{key: value for key, value in asked.items() if value is not None})


@up.command("ray")
@click.option("--nodes", type=click.IntRange(1, 32), help="Nodes; default 4.")
@click.option("--gpus-per-node", type=click.IntRange(0, 16), help="GPUs that each node says it has; default 0.")
@click.option("--cpus-per-node", type=click.IntRange(1, 256), help="CPUs that each node says it has; default 2.")
@JSON
def up_ray(*, as_json: bool, **asked: Any) -> int:
    """A Ray whose nodes are this machine under several names, in a network of its own.

    Needs the package ray, the extra `ray`. Nothing outside can reach it but through one socket, which is yours.
    Another Ray of this machine is left alone. It always starts without jobs.
    """
    return _up("ray", as_json=as_json, **{key: value for key, value in asked.items() if value is not None})


@up.command("monitoring")
@JSON
def up_monitoring(*, as_json: bool) -> int:
    """A Prometheus with our rules that scrapes all live runs of this account, found through `launch monitor`.

    Takes the Prometheus of the machine, or Debian's package, unpacked into the cache. Grafana comes with its dashboards
    where its program or Docker is there. Its earlier data is there again.
    """
    return _up("monitoring", as_json=as_json)


def _up(kind: str, *, as_json: bool, **asked: Any) -> int:
    facts = load_sandbox(kind).up(report=lambda line: click.echo(line, err=as_json), **asked)
    _print_facts(facts, as_json)
    return EXIT_DONE


@sandbox.command()
@KIND
@JSON
def down(kind: str, *, as_json: bool) -> int:
    """End it and all that runs in it. Its data stays for the next `up`."""
    was_running = load_sandbox(kind).down()
    if as_json:
        click.echo(json_text({"name": kind, "was_running": was_running}))
    else:
        click.echo(f"{kind} is down" + ("" if was_running else " (it was not running)"))
    return EXIT_DONE


@sandbox.command()
@click.argument("kind", type=click.Choice(KINDS), metavar=f"[{'|'.join(KINDS)}]", required=False)
@JSON
def status(kind: str | None, *, as_json: bool) -> int:
    """Show one sandbox, or all. Exit code 1 if the one asked for is down."""
    found = [load_sandbox(name).status() for name in ([kind] if kind else KINDS)]
    if as_json:
        listed = [_as_json(facts) for facts in found]
        click.echo(json_text(listed[0] if kind else listed))
    else:
        for facts in found:
            _print_facts(facts, False)
    return EXIT_FAILED if kind and not found[0].running else EXIT_DONE


@sandbox.command()
@KIND
@JSON
def env(kind: str, *, as_json: bool) -> int:
    """Print shell lines with which other programs find it.

    Use them as eval "$(launch sandbox env s3)". No secret is in them.
    """
    found = load_sandbox(kind).environment()
    if as_json:
        click.echo(json.dumps({name: value or None for name, value in found.items()}, indent=1))
        return EXIT_DONE
    for name, value in found.items():
        click.echo(f"export {name}={shlex.quote(value)}" if value else f"unset {name}")
    return EXIT_DONE


def _as_json(facts: Facts) -> dict[str, Any]:
    flat = asdict(facts)
    return {**flat.pop("details"), **flat}


def _print_facts(facts: Facts, as_json: bool) -> None:
    if as_json:
        click.echo(json_text(_as_json(facts)))
        return
    click.echo(f"{facts.name}: {click.style('up', fg='green') if facts.running else 'down'}")
    for key, value in {**facts.details, "folder": facts.folder}.items():
        if value is not None:
            click.echo(f"  {key.replace('_', ' '):<18} {_value_text(value)}")
    for command in facts.next_commands:
        click.echo(f"  {command}")


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
