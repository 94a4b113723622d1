"""The ASGI application: routes, keys, origins, errors. Knows no terminal."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from launchyard.model.serve.http import chat, completions, simple
from launchyard.model.serve.http.describe import docs_page, openapi
from launchyard.model.serve.http.errors import ApiError
from launchyard.model.serve.http.server import Server

_LOG = logging.getLogger(__name__)
_OPEN = ("/", "/health", "/docs", "/openapi.json", "/favicon.ico")  # what nobody needs a key for


@dataclass(frozen=True)
class Access:
    """keys: of which a client needs one; none: everyone may. origins: other sites whose pages may ask. hosts: names by
    which this server may be asked; none: any.
    """

    keys: Sequence[str] = ()
    origins: Sequence[str] = ()
    hosts: Sequence[str] = ()


def application(server: Server, access: Access) -> Starlette:
    routes = [
        Route("/v1/chat/completions", chat.chat_completions, methods=["POST"]),
        Route("/v1/completions", completions.completions, methods=["POST"]),
        Route("/v1/models", simple.models),
        Route("/v1/models/{name:path}", simple.one_model),
        Route("/v1/embeddings", simple.embeddings, methods=["POST"]),
        Route("/predict", simple.predict_text, methods=["POST"]),
        Route("/generate", simple.generate_text, methods=["POST"]),
        Route("/health", simple.health),
        Route("/metrics", simple.metrics),
        Route("/docs", _docs),
        Route("/openapi.json", _openapi),
        Route("/", _page),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Named), *_cors(access), Middleware(_Guard, access=access)],
        exception_handlers={ApiError: _refused, HTTPException: _http_error, Exception: _failed},
    )
    app.state.server = server
    return app


def _cors(access: Access) -> list[Middleware]:
    if not access.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    ]


class _Named:
    """Gives every answer the x-request-id of its request, or a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        name = given if given and len(given) <= 128 else secrets.token_hex(16).encode()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"x-request-id", name))
            await send(message)

        await self._app(scope, receive, named)


class _Guard:
    """Refuses who has no key, pages of other sites, and names that are not this server's (DNS rebinding)."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(HttpRequest(scope))
            except ApiError as error:
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, http: HttpRequest) -> None:
        access = self._access
        host = http.headers.get("host", "")
        if access.hosts and (urlsplit(f"//{host}").hostname or "") not in access.hosts:
            raise ApiError(403, f"{host!r} is no name of this server; `--allowed-host` adds one", code="host")
        origin = http.headers.get("origin")
        ours = origin is None or urlsplit(origin).netloc == host
        if not ours and origin not in access.origins and "*" not in access.origins:
            raise ApiError(
                403, f"pages of {origin} may not ask this server; `--cors-origin` allows them", code="origin"
            )
        if access.keys and http.url.path not in _OPEN:
            scheme, _, given = http.headers.get("authorization", "").partition(" ")
            known = [hmac.compare_digest(given.strip().encode("latin-1"), key.encode()) for key in access.keys]
            if scheme.lower() != "bearer" or not any(known):
                raise ApiError(
                    401, "a key is needed: Authorization: Bearer KEY", code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip


async def _refused(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    paths = ", ".join(route.path for route in http.app.routes)
    what = {
        404: f"there is no {http.url.path} here; there are {paths}",
        405: f"{http.url.path} does not take {http.method}",
    }.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, what, headers=error.headers).response()


async def _failed(http: HttpRequest, error: Exception) -> Response:
    _LOG.exception("%s failed", http.url.path, exc_info=error)
    return ApiError(500, f"the server failed: {type(error).__name__}", code="internal_error").response()


async def _openapi(http: HttpRequest) -> Response:
    return JSONResponse(openapi())


async def _docs(http: HttpRequest) -> Response:
    return _html(docs_page())


async def _page(http: HttpRequest) -> Response:
    return _html(files(__package__).joinpath("page.html").read_text())


def _html(text: str) -> Response:
    """A page that may load nothing but what it holds, and ask nobody but this server."""
    nonce = secrets.token_urlsafe(16)
    own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    policy = f"default-src 'self'; {own}; img-src 'self' data:; base-uri 'none'"
    return HTMLResponse(
        text.replace("{{nonce}}", nonce),
        headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY"},
    )
