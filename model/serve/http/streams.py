"""Answers that come piece by piece, and the end of work for clients that have gone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from launchyard.model.serve.http.errors import ApiError
from launchyard.model.serve.http.service import Service, TextJob

Result = TypeVar("Result")
# Proxies would hold pieces back otherwise.
_UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
GONE = 499  # for a log: the client is not there to read it


def compact(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def event_stream(chunks: AsyncIterator[Mapping[str, object]]) -> StreamingResponse:
    """Server-sent events, of which `[DONE]` is the last, also behind an error."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield f"data: {compact(chunk)}\n\n"
        except ApiError as error:
            yield f"data: {compact(error.body())}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers=_UNBUFFERED)


def json_lines(chunks: AsyncIterator[Mapping[str, object]]) -> StreamingResponse:
    """One JSON object a line."""

    async def lines() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield f"{compact(chunk)}\n"
        except ApiError as error:
            yield f"{compact(error.body())}\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson", headers=_UNBUFFERED)


@asynccontextmanager
async def cancelled_at_end(service: Service, job: TextJob) -> AsyncIterator[TextJob]:
    """Whatever ends the work on a job ends the job."""
    try:
        yield job
    finally:
        service.cancel(job)


async def unless_gone(http: HttpRequest, work: Callable[[], Awaitable[Response]]) -> Response:
    """The result of `work`, which is cancelled if the client closes the connection. The body has been read."""
    found: list[Response] = []

    async def watch(scope: anyio.CancelScope) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch, group.cancel_scope)
        try:
            found.append(await work())
        except ApiError as error:
            found.append(error.response())
        group.cancel_scope.cancel()
    return found[0] if found else Response(status_code=GONE)
