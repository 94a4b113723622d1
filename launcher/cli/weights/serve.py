"""`launch serve`. torch, starlette and uvicorn are imported in a body only."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from launchyard.errors import UserError
from launchyard.host.environment import api_key
from launchyard.launcher.cli.completion import complete_cluster, complete_model
from launchyard.launcher.cli.weights.find import MODEL_HELP, find_model, weights_errors
from launchyard.launcher.cli.weights.sampling_options import (
    follow_config,
    generation_config_option,
    graphs_option,
    rules_in_words,
    weights_option,
)
from launchyard.launcher.cli.weights.template import chat_of, template_options
from launchyard.launcher.format import json_text
from launchyard.launcher.watch.transfer import transfer_bar
from launchyard.storage.files import read_text

if TYPE_CHECKING:
    from launchyard.model.loaded import LoadedModel
    from launchyard.model.serve.http.app import Access
    from launchyard.model.serve.http.server import Server

_CONTEXT = 8192
_ANY = ("0.0.0.0", "::")  # noqa: S104  # only where a user says so, or with a key
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class _Options:
    """As they were typed."""

    model: str
    host: str | None
    port: int | None
    name: str | None
    slots: int
    context_length: int | None
    queue: int
    timeout: float
    grace: float
    api_keys: str | None
    cors_origin: tuple[str, ...]
    allowed_host: tuple[str, ...]
    device: str
    weights: str
    no_graphs: bool
    generation_config: str
    style: str | None
    template: str | None
    follow: bool
    follow_every: float
    cluster: str | None
    gpus: int
    time_limit: str | None
    wait: float
    dry_run: bool
    as_json: bool


@click.command(epilog=MODEL_HELP)
@click.argument("model", metavar="MODEL", shell_complete=complete_model)
@click.option("--host", metavar="ADDRESS", help="0.0.0.0: for everyone.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="0: any.  [default: 8000]")
@click.option("--name", metavar="NAME", help="Of the model in requests; default: the last part of MODEL.")
@click.option("--slots", default=8, show_default=True, type=click.IntRange(1, 512), metavar="N", help="Texts at once.")
@click.option("--context-length", type=click.IntRange(min=2), metavar="N", help="Tokens of a context; default: 8192.")
@click.option("--queue", default=64, show_default=True, type=click.IntRange(0), metavar="N", help="Texts that wait.")
@click.option("--timeout", default=600.0, show_default=True, type=click.FloatRange(1), metavar="S", help="Per request.")
@click.option("--grace", default=30.0, show_default=True, type=click.FloatRange(0), metavar="S", help="At its end.")
@click.option("--api-keys", metavar="FILE", help="Keys, one a line; one alone may be in the environment.")
@click.option("--cors-origin", multiple=True, metavar="URL", help="A site whose pages may ask; may be given again.")
@click.option("--allowed-host", multiple=True, metavar="NAME", help="A further name of this server.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N.")
@weights_option
@graphs_option
@generation_config_option
@template_options
@click.option("--follow", is_flag=True, help="MODEL is a run: serve its newest checkpoint as training goes on.")
@click.option("--follow-every", default=10.0, type=click.FloatRange(0.1), metavar="S", hidden=True)
@click.option("--cluster", metavar="NAME|FILE", shell_complete=complete_cluster, help="As a job there.")
@click.option("--gpus", default=0, type=click.IntRange(0), metavar="N", help="GPUs of that job.")
@click.option("--time-limit", metavar="TIME", help="Of that job.")
@click.option("--wait", default=600.0, show_default=True, type=click.FloatRange(0), metavar="S", help="For that job.")
@click.option("--dry-run", is_flag=True, help="Print the request for that job, and send nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print where it listens as one line of JSON.")
def serve(**given: object) -> None:
    """Serve a model over HTTP, by the routes of OpenAI, and a page to chat with it."""
    options = _Options(**given)  # type: ignore[arg-type]  # click has checked them
    if options.cluster is None:
        _serve_here(options)
    else:
        _serve_there(options, options.cluster)


def _serve_there(options: _Options, cluster: str) -> None:
    from launchyard.launcher.backends.cluster import load_cluster, reach_storage
    from launchyard.launcher.submit.serve import plan_server, send_server, server_text

    place = load_cluster(cluster)
    reach_storage(place)
    with weights_errors():
        model = _from_anywhere(find_model(options.model))
    name = options.name or _last_part(options.model)
    argv = [model, *_remote_options(options, name)]
    command = plan_server(place, argv, name=name, gpus=options.gpus, time_limit=options.time_limit)
    if options.dry_run:
        click.echo(server_text(place, command))
        return
    has_keys = options.api_keys is not None or options.host is not None
    job = send_server(
        place, command, has_keys=has_keys, wait_seconds=options.wait, on_state=lambda state: click.echo(state, err=True)
    )
    facts = {"job_id": job.job_id, "end_with": job.end_with, "key_file": job.key_file, **job.facts}
    if options.as_json:
        click.echo(json_text(facts, indent=None))
        return
    if not job.facts:
        click.echo(f"it does not listen yet; its output says where once it does: {command.folder}", err=True)
        return
    url = str(job.facts["url"])
    address = url.removeprefix("http://")
    port = address.rpartition(":")[2]
    key = f' -H "Authorization: Bearer $(cat {job.key_file})"' if job.key_file else ""
    lines = [
        f"{name} listens on {url} (job {job.job_id})",
        f"  curl {url}/v1/models{key}",
        f"  ssh -N -L {port}:{address} LOGIN-NODE      # then http://localhost:{port}/ on your own machine",
        f"  {job.end_with}                             # ends it",
    ]
    click.echo("\n".join(lines), err=True)


def _from_anywhere(place: str) -> str:
    """A path as another machine with the same files finds it."""
    parts = [place] if os.path.exists(place) else place.split("+")
    return "+".join(os.path.abspath(part) if os.path.exists(part) else part for part in parts)


def _remote_options(options: _Options, name: str) -> list[str]:
    """How the job is told what was typed here."""
    argv = [f"--host={options.host or _ANY[0]}", f"--port={options.port or 0}", f"--name={name}"]
    argv += [f"--slots={options.slots}", f"--queue={options.queue}", f"--timeout={options.timeout:g}"]
    argv += [f"--grace={options.grace:g}", f"--device={options.device}", f"--weights={options.weights}"]
    argv += ["--no-graphs"] if options.no_graphs else []
    argv += [f"--context-length={options.context_length}"] if options.context_length else []
    argv += [f"--api-keys={options.api_keys}"] if options.api_keys else []
    argv += [f"--generation-config={options.generation_config}"]
    argv += [f"--style={options.style}"] if options.style else []
    argv += [f"--template={_from_anywhere(options.template)}"] if options.template else []
    argv += [f"--cors-origin={origin}" for origin in options.cors_origin]
    argv += [f"--allowed-host={host}" for host in options.allowed_host]
    return [*argv, *(["--follow"] if options.follow else [])]


def _serve_here(options: _Options) -> None:
    keys = _keys(options.api_keys)
    access = _access(options, keys)
    with weights_errors():
        import uvicorn  # noqa: F401  # what is missing is said before weights are read
    with _listen(options.host or _LOCAL_NAMES[1], 8000 if options.port is None else options.port) as listener:
        with weights_errors():
            place = find_model(options.model)
            model = _load(options, place)
            server = _server(model, options)
        _serve_on(listener, server, place, access, options)


def _serve_on(listener: socket.socket, server: Server, place: str, access: Access, options: _Options) -> None:
    from launchyard.model.serve.http.run import serve as serve_until_stopped

    def on_ready() -> None:
        _say_ready(server, listener, access, as_json=options.as_json)

    beside = _follower(server, place, options) if options.follow else None
    serve_until_stopped(server, listener, access=access, grace_seconds=options.grace, beside=beside, on_ready=on_ready)


def _load(options: _Options, place: str) -> LoadedModel:
    from launchyard.model.weights.load import load

    with transfer_bar(f"read {options.model}", sys.stderr) as on_progress:
        model = load(
            place, device=options.device, weights=options.weights, graphs=_graphs(options), on_progress=on_progress
        )
    model.tokenizer  # noqa: B018  # without one no text can be served
    return _set_up(model, options)


def _graphs(options: _Options) -> bool | None:
    return False if options.no_graphs else None


def _set_up(model: LoadedModel, options: _Options) -> LoadedModel:
    """A model without a template serves all but chats. ValueError for rules of drawing that make no sense."""
    follow_config(model, options.generation_config, {})
    if options.style is not None or options.template is not None:
        model.chat = chat_of(model, options.style, options.template)
    return model


def _server(model: LoadedModel, options: _Options) -> Server:
    from launchyard.model.serve.http.measures import Measures
    from launchyard.model.serve.http.run import version_of
    from launchyard.model.serve.http.server import Server
    from launchyard.model.serve.http.service import ServerLimits, Service

    name = options.name or _last_part(options.model)
    limits = ServerLimits(
        n_slots=options.slots,
        context_length=options.context_length or min(_CONTEXT, model.config.max_seq_len),
        n_waiting=options.queue,
        seconds=options.timeout,
    )
    return Server(Service(model, limits, Measures(name)), name, version_of(model))


def _last_part(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]


def _access(options: _Options, keys: list[str]) -> Access:
    from launchyard.model.serve.http.app import Access

    local = _is_loopback(options.host or _LOCAL_NAMES[1])
    hosts = [*_LOCAL_NAMES, *options.allowed_host] if local or options.allowed_host else []
    return Access(keys=keys, origins=options.cors_origin, hosts=hosts)


def _keys(path: str | None) -> list[str]:
    """From the file, else from the environment: never from the command line, which everyone on the machine can read."""
    if path is None:
        key = api_key()
        return [key] if key else []
    try:
        keys = [line.strip() for line in read_text(path).splitlines()]
    except OSError as error:
        raise UserError(f"--api-keys {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--api-keys {error}") from error
    found = [key for key in keys if key and not key.startswith("#")]
    if not found:
        raise UserError(f"--api-keys {path} holds no key; write one a line")
    return found


def _listen(host: str, port: int) -> socket.socket:
    from launchyard.model.serve.http.run import listen

    try:
        return listen(host, port)
    except OSError as error:
        where = f"{host}:{port}"
        raise UserError(f"cannot listen on {where}: {error.strerror}", hint="--port 0 takes a free port") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _say_ready(server: Server, listener: socket.socket, access: Access, *, as_json: bool) -> None:
    host, port = listener.getsockname()[:2]
    shown = socket.gethostname() if host in _ANY else f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{port}"
    facts = {
        "url": url,
        "model": server.name,
        "version": server.version,
        "slots": server.service.limits.n_slots,
        "context_length": server.length,
        "device": str(server.model.device),
        "pid": os.getpid(),
    }
    if as_json:
        click.echo(json_text(facts, indent=None))
        return
    open_to_all = not _is_loopback(host) and not access.keys
    matrices = server.model.matrices
    where = f"{facts['device']} {server.service.engine.decoding.words}".rstrip()
    rules = dict(server.model.sampling_rules)
    lines = [
        *([matrices.words()] if matrices is not None else []),
        *([f"where a request leaves it open: {rules_in_words(rules)}"] if rules else []),
        f"{server.name} on {where}: {facts['slots']} texts at once, {server.length} tokens of context each",
        f"  {url}/v1         base URL for OpenAI's clients",
        f"  {url}/           chat in a browser",
        f"  {url}/docs       all routes, with their fields",
        *(["  anyone who reaches this machine may ask: --api-keys FILE asks for a key"] if open_to_all else []),
        "  Ctrl-C stops it",
    ]
    click.echo("\n".join(lines), err=True)


def _follower(server: Server, place: str, options: _Options) -> Callable[[], Awaitable[None]]:
    from launchyard.model.serve.http.run import follow_run
    from launchyard.model.weights.load import load

    if server.model.source.kind != "checkpoint":
        raise UserError(f"--follow needs a run; {options.model} is none")

    def on_new(version: str) -> None:
        click.echo(f"now {version}", err=True)

    async def beside() -> None:
        def newest() -> LoadedModel:
            model = load(place, device=options.device, weights=options.weights, graphs=_graphs(options))
            return _set_up(model, options)
            return _set_up(load(place, device=options.device, weights=options.weights), options)

        await follow_run(server, newest, place, seconds=options.follow_every, on_new=on_new)

    return beside
