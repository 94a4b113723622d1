"""`launch sandbox`: small real services on this machine, started, ended, shown, and made known to a shell."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from typing import Any

import click

from launcher.errors import EXIT_DONE, EXIT_FAILED
from launcher.sandbox import KINDS, Facts, load_sandbox

KIND = click.argument("kind", type=click.Choice(KINDS), metavar="|".join(KINDS))
JSON = click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")


@click.group()
def sandbox() -> None:
    """Start or end a small real service on this machine, for trying things out.

    s3: an S3 server with keys of its own, in your user's folders, on loopback.
    """


@sandbox.command()
@KIND
@JSON
def up(kind: str, *, as_json: bool) -> int:
    """Start it, or find it running; what it held before is there again."""
    facts = load_sandbox(kind).up(say=lambda line: click.echo(line, err=as_json))
    _say(facts, as_json)
    return EXIT_DONE


@sandbox.command()
@KIND
@JSON
def down(kind: str, *, as_json: bool) -> int:
    """End it. Its data stays for the next `up`."""
    was_running = load_sandbox(kind).down()
    if as_json:
        click.echo(json.dumps({"name": kind, "was_running": was_running}))
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
        click.echo(json.dumps(listed[0] if kind else listed, indent=1))
    else:
        for facts in found:
            _say(facts, False)
    return EXIT_FAILED if kind and not found[0].running else EXIT_DONE


@sandbox.command()
@KIND
@JSON
def env(kind: str, *, as_json: bool) -> int:
    """Print shell lines with which other programs find it: eval "$(launch sandbox env s3)". No secret is in them."""
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


def _say(facts: Facts, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(_as_json(facts), indent=1))
        return
    click.echo(f"{facts.name}: {click.style('up', fg='green') if facts.running else 'down'}")
    for key, value in {**facts.details, "folder": facts.folder}.items():
        if value is not None:
            click.echo(f"  {key.replace('_', ' '):<18}{f'{value:,}' if isinstance(value, int) else value}")
    for command in facts.next_commands:
        click.echo(f"  {command}")
