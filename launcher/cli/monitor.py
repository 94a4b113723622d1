"""`launch monitor`: options and output; the server is launcher/monitor/server.py."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from launchyard.errors import EXIT_DONE, user_errors
from launchyard.launcher.cli.completion import complete_cluster
from launchyard.launcher.cli.paths import path_or_url

if TYPE_CHECKING:
    from launchyard.run.rundir import RunDir

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@click.command()
@click.argument("places", type=path_or_url, nargs=-1, metavar="[RUN|FOLDER|URL]...")
@click.option(
    "--cluster",
    "clusters",
    multiple=True,
    metavar="NAME|FILE",
    shell_complete=complete_cluster,
    help="All runs in the storage of that cluster too, of any user.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=9465, show_default=True, help="0 takes a free one.")
@click.option(
    "--file-sd", type=path_or_url, metavar="PATH", help="Write the targets into this file as well, for file_sd."
)
@click.option("--every", type=click.FloatRange(min=0.2), default=5.0, show_default=True, help="Seconds between scans.")
@click.option(
    "--resume",
    "resumes",
    is_flag=True,
    help="Resume runs of this account whose job is gone without a word, once their scheduler answers.",
)
@click.option("--once", is_flag=True, help="Scan once, print and write the targets, serve nothing.")
@click.option("--json", "as_json", is_flag=True, help="Scan once, and print the targets as JSON.")
def monitor(
    places: tuple[str, ...],
    clusters: tuple[str, ...],
    *,
    host: str,
    port: int,
    file_sd: str | None,
    every: float,
    resumes: bool,
    once: bool,
    as_json: bool,
) -> int:
    """Serve the workers of all live runs to Prometheus (http_sd), and the launcher's own series.

    All runs of this account are scanned, wherever they run; also those in a RUN, FOLDER or URL that is named. Runs
    that have ended vanish from the list. Nothing is stored: it can be ended and started at any time.

    With --resume a run that is lost goes on by itself, as after the death of Ray's head or of this machine's owner
    process: if it was seen alive here before, nobody has asked it to stop, and not more often than the recipe allows
    failures in a row.
    """
    from launchyard.launcher.monitor.auto_resume import AutoResume
    from launchyard.launcher.monitor.discovery import Discovery, check_place
    from launchyard.launcher.monitor.server import Monitor, TargetFile, make_server, target_table

    found = list(_places(places, clusters))
    with user_errors():
        for place in found:
            check_place(place)
    if resumes and (once or as_json):
        raise click.UsageError("--resume watches runs over time; it cannot go with --once or --json")
    actions: list[Any] = [TargetFile(file_sd)] if file_sd else []
    actions += [AutoResume(_resume, click.echo)] if resumes else []
    watching = Monitor(Discovery(found), every=every, on_view=actions)
    if once or as_json:
        view = watching.refresh()
        click.echo(json.dumps(view.groups(), indent=1) if as_json else "\n".join(target_table(view.runs)))
        return EXIT_DONE
    server = make_server(watching, host=host, port=port)
    for line in _greeting(host, int(server.server_address[1]), file_sd):
        click.echo(line)
    _serve(watching, server)
    return EXIT_DONE


def _resume(run: RunDir) -> str:
    from launchyard.launcher.submit.resume import make_ready

    return make_ready(run, {}).submit(report=click.echo).job_id


def _places(arguments: tuple[str, ...], clusters: tuple[str, ...]) -> Iterator[Any]:
    """Places to scan besides the registry. UserError for an unknown name."""
    from launchyard.launcher.backends.cluster import load_cluster
    from launchyard.launcher.monitor.discovery import Place
    from launchyard.launcher.runs.find import find

    for argument in arguments:
        if "://" in argument or os.path.isdir(argument):
            yield Place(argument)
        else:
            find(argument)  # one of the registry, which is scanned anyway
    for name in clusters:
        storage = load_cluster(name).storage
        yield Place(storage.url, storage.options.model_dump(exclude_none=True))


def _greeting(host: str, port: int, file_sd: str | None) -> Iterator[str]:
    shown = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104
    yield f"targets  {shown}/targets"
    yield f"series   {shown}/metrics"
    if file_sd:
        yield f"file     {file_sd}"
    if host not in LOOPBACK:
        yield "! note   anyone who reaches this address can read the names and the progress of your runs"
    yield "for Prometheus:"
    yield "  scrape_configs:"
    yield "    - job_name: launchyard"
    yield f"      http_sd_configs: [{{url: {shown}/targets, refresh_interval: 15s}}]"
    yield "    - job_name: launchyard-monitor"
    yield f"      static_configs: [{{targets: ['{shown.removeprefix('http://')}']}}]"


def _serve(watching: Any, server: Any) -> None:
    """Until SIGTERM or Ctrl-C."""

    def leave(number: int, frame: Any) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()  # it waits for the loop that we are in

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    watching.start()
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        server.server_close()
        watching.stop()
