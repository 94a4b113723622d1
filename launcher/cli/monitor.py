"""`launch monitor` and `launch ack`: options and output; the server is launcher/monitor/server.py."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from launchyard.errors import EXIT_DONE, UserError, user_errors
from launchyard.launcher.cli.completion import complete_cluster, complete_several
from launchyard.launcher.cli.paths import path_or_url
from launchyard.run.rundir import RunDir
from launchyard.storage.redact import redact

if TYPE_CHECKING:
    from launchyard.launcher.monitor.pager import Pager

WEBHOOK = "--webhook"
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
@click.option(
    WEBHOOK,
    metavar="URL|NAME",
    expose_value=False,
    callback=lambda ctx, _param, value: ctx.meta.update({WEBHOOK: value}),
    help="Page there, without a Prometheus; NAME: the environment variable that holds the URL.",
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
    that have ended vanish from the list. It can be ended and started at any time.

    With --resume a run that is lost goes on by itself, as after the death of Ray's head or of this machine's owner
    process: if it was seen alive here before, nobody has asked it to stop, and not more often than the recipe allows
    failures in a row.

    With --webhook a POST of JSON with a `text`, as Slack and Discord take it, says what launch why says of a run that
    has failed, is lost, fails again and again, gives no sign, or waits for more than a day: once, and once when that is
    over. With --once, too: for cron.
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
    pager = _pager(click.get_current_context().meta[WEBHOOK])
    actions += [pager] if pager is not None else []
    watching = Monitor(Discovery(found), every=every, on_view=actions)
    if once or as_json:
        view = watching.refresh()
        if pager is not None:
            pager.wait()
        click.echo(json.dumps(view.groups(), indent=1) if as_json else "\n".join(target_table(view.runs)))
        return EXIT_DONE
    server = make_server(watching, host=host, port=port)
    for line in _greeting(host, int(server.server_address[1]), file_sd):
        click.echo(line)
    _serve(watching, server)
    return EXIT_DONE


def _pager(webhook: str | None) -> Pager | None:
    """UserError without the URL, which may be a password."""
    if webhook is None:
        return None
    from launchyard.host.environment import variable
    from launchyard.launcher.monitor.pager import Pager
    from launchyard.training.notify.section import url_problem

    named = webhook.isidentifier()
    url = variable(webhook) if named else webhook
    if problem := url_problem(url) if url else "is not set":
        where = f"variable {webhook}" if named else WEBHOOK
        raise UserError(f"{where}: {problem}", hint="export HOOK=https://…; launch monitor --webhook HOOK")
    return Pager(str(url), lambda line: click.echo(line, err=True))


@click.command()
@click.argument("runs", metavar="[RUN]...", nargs=-1, shell_complete=complete_several)
@click.option("--all", "every_run", is_flag=True, help="Every run of this account that pages.")
@click.option("--note", default="", metavar="TEXT", help="What is to be done, for others.")
@click.option("--json", "as_json", is_flag=True, help="Print facts as JSON.")
def ack(runs: tuple[str, ...], *, every_run: bool, note: str, as_json: bool) -> int:
    """Say that you know how a run has ended: nobody is paged for that any more.

    A run that has failed, or is lost, pages until it is resumed, removed or acknowledged. If it is resumed and ends so
    again, it pages again.
    """
    from launchyard.launcher.format import json_text
    from launchyard.launcher.monitor.acknowledge import acknowledge
    from launchyard.launcher.runs.find import reach_run

    if every_run == bool(runs):
        raise click.UsageError("name runs, or use --all")
    with user_errors():
        done = [(run.url, acknowledge(reach_run(run), note=note)) for run in _ended(runs)]
    if as_json:
        click.echo(json_text([{"url": url, **record.model_dump()} for url, record in done]))
        return EXIT_DONE
    for url, record in done:
        click.echo(f"acknowledged {redact(url)}: attempt {record.attempt} {record.state}")
    if not done:
        click.echo("no run pages")
    return EXIT_DONE


def _ended(names: tuple[str, ...]) -> Iterator[RunDir]:
    """Runs by name; of sweeps, and of all if none is named, those that page."""
    from launchyard.launcher.monitor.acknowledge import is_unattended
    from launchyard.launcher.runs.find import find, reach_run
    from launchyard.launcher.runs.registry import registered
    from launchyard.launcher.sweep.record import sort_out

    sweeps, others = sort_out(names)
    yield from map(find, others)
    many = [run.url for sweep in sweeps for run in sweep.runs()]
    many += [] if names else [entry.url for entry in registered() if entry.is_there()]
    for url in dict.fromkeys(many):
        run = reach_run(RunDir(url))
        if is_unattended(run):
            yield run


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
