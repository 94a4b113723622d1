"""Runs the application until it is told to stop, and takes newer weights of a run meanwhile. Knows no terminal."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import uvicorn
from starlette.applications import Starlette

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.http.app import Access, application
from launchyard.model.serve.http.server import Server
from launchyard.model.weights.source import find_source
from launchyard.storage.errors import CorruptError

_LOG = logging.getLogger(__name__)


def serve(
    server: Server,
    listener: socket.socket,
    *,
    access: Access,
    grace_seconds: float = 30.0,
    beside: Callable[[], Awaitable[None]] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Until SIGINT or SIGTERM: then nothing new is taken, and what runs has `grace_seconds` to end.

    beside: runs in the same loop as long as the server does.
    """
    loop = event_loop(server, access=access, grace_seconds=grace_seconds, beside=beside, on_ready=on_ready)
    asyncio.run(loop.serve(sockets=[listener]))


def event_loop(
    server: Server,
    *,
    access: Access,
    grace_seconds: float = 30.0,
    beside: Callable[[], Awaitable[None]] | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """What `serve` runs. It ends when its `should_exit` is set."""
    app = application(server, access)
    app.router.lifespan_context = _lifespan(server, grace_seconds, beside, on_ready)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=int(grace_seconds) + 1,
        server_header=False,
        h11_max_incomplete_event_size=64 << 10,
    )
    return uvicorn.Server(config)


def _lifespan(
    server: Server,
    grace_seconds: float,
    beside: Callable[[], Awaitable[None]] | None,
    on_ready: Callable[[], None],
) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        server.service.start()
        task = None if beside is None else asyncio.ensure_future(beside())
        on_ready()
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
            await anyio.to_thread.run_sync(lambda: server.service.close(grace_seconds))

    return lifespan


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any. OSError if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    listener.listen(2048)
    return listener


def version_of(model: LoadedModel) -> str:
    """Which weights these are, in a word: the last part of their place, such as step-00001000."""
    return model.source.folder.rstrip("/").rpartition("/")[2]


async def follow_run(
    server: Server, load: Callable[[], LoadedModel], place: str, *, seconds: float, on_new: Callable[[str], None]
) -> None:
    """Look for a newer checkpoint every so many seconds, for ever. Texts that have begun end with the weights they had.

    What cannot be read now is tried again; the server goes on with the weights it has.
    """
    while True:
        await anyio.sleep(seconds)
        try:
            newest = await anyio.to_thread.run_sync(lambda: find_source(place).folder)
            if newest == server.model.source.folder:
                continue
            model = await anyio.to_thread.run_sync(load)
        except (OSError, ValueError, CorruptError) as error:  # removed as it was read, a store that fails …
            _LOG.warning("the newest checkpoint of %s cannot be read now: %s", place, error)
            continue
        server.service.replace(model)
        server.version = version_of(model)
        on_new(server.version)
