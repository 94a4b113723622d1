"""Routes beside those of OpenAI: /predict and /generate with a plain prompt, and what tells of the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from launchyard.model.serve.http.asking import request_for, room_for
from launchyard.model.serve.http.bodies import GenerateBody, PromptBody, SamplingBody, read_body
from launchyard.model.serve.http.errors import ApiError
from launchyard.model.serve.http.server import Server
from launchyard.model.serve.http.streams import cancelled_at_end, json_lines, unless_gone


async def predict_text(http: HttpRequest) -> Response:
    """{"prompt"} -> {"output"}; with "stream" one line of JSON a piece."""
    server: Server = http.app.state.server
    body = await server.read(http, PromptBody)
    return await _written(http, body, body.prompt, body.max_new_tokens, "output")


async def generate_text(http: HttpRequest) -> Response:
    """{"prompt", "max_tokens"} in the body, or as parameters of the address -> {"response"}."""
    server: Server = http.app.state.server
    fields = dict(http.query_params)
    if fields:
        body = read_body(GenerateBody, {**fields, **_numbers(fields)})
    else:
        body = await server.read(http, GenerateBody)
    server.check_name(body.model)
    return await _written(http, body, body.prompt, body.max_tokens, "response")


def _numbers(fields: Mapping[str, str]) -> dict[str, object]:
    """Parameters of an address are text; these are numbers."""
    found: dict[str, object] = {}
    for key, kind in (("max_tokens", int), ("temperature", float), ("top_p", float), ("top_k", int), ("seed", int)):
        if key in fields:
            try:
                found[key] = kind(fields[key])
            except ValueError:
                raise ApiError(400, f"{key} is {fields[key]!r}, no number", param=key) from None
    return found


async def _written(http: HttpRequest, body: SamplingBody, prompt: str, max_new_tokens: int, name: str) -> Response:
    server: Server = http.app.state.server
    ids = await server.encode(prompt) if prompt else server.model.encode(prompt)
    if not ids:
        raise ApiError(400, "the prompt is empty", param="prompt")
    room = room_for(ids, max_new_tokens, server.length)
    request = request_for(server.model, body, ids, sampling=server.sampling(body), max_new_tokens=room)
    form = server.structured(body)
    request = request if form is None else replace(request, constraint=form.copy())
    job = server.service.submit([request], stops=body.stops, skip_special=body.skip_special_tokens)

    async def pieces() -> AsyncIterator[Mapping[str, object]]:
        async with cancelled_at_end(server.service, job):
            async for piece in job.pieces():
                if piece.text:
                    yield {name: piece.text}

    async def whole() -> Response:
        return JSONResponse({name: "".join([str(piece[name]) async for piece in pieces()])})

    return json_lines(pieces()) if body.stream else await unless_gone(http, whole)


async def models(http: HttpRequest) -> Response:
    return JSONResponse({"object": "list", "data": [_card(http.app.state.server)]})


async def one_model(http: HttpRequest) -> Response:
    server: Server = http.app.state.server
    server.check_name(http.path_params["name"])
    return JSONResponse(_card(server))


def _card(server: Server) -> dict[str, object]:
    return {
        "id": server.name,
        "object": "model",
        "created": server.created,
        "owned_by": "launchyard",
        "max_model_len": server.length,
        "version": server.version or None,
    }


async def embeddings(http: HttpRequest) -> Response:
    raise ApiError(400, "this server writes text; it has no embeddings", code="unsupported")


async def health(http: HttpRequest) -> Response:
    """200 while requests are served; 503 when it stops, or the engine's thread is gone."""
    server: Server = http.app.state.server
    alive = server.service.is_alive
    return JSONResponse({"status": "ok" if alive else "stopping", "model": server.name}, 200 if alive else 503)


async def metrics(http: HttpRequest) -> Response:
    service = http.app.state.server.service
    page = service.measures.look(service.engine, service.n_open)
    return PlainTextResponse(page, media_type="text/plain; version=0.0.4; charset=utf-8")
