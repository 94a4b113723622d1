"""What a client is told when its request is refused: OpenAI's form of an error, whatever route it asked."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse

# A request may be tried again after so many seconds if nothing better is known.
_RETRY_SECONDS = 1


class ApiError(Exception):
    """param: the field that is at fault. code: a word for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, headers=self.headers)


def busy(retry_after: int) -> ApiError:
    return ApiError(
        429,
        "all slots are taken and the queue is full; try again later",
        code="queue_full",
        headers={"Retry-After": str(retry_after)},
    )


def unavailable(message: str, code: str) -> ApiError:
    return ApiError(503, message, code=code, headers={"Retry-After": str(_RETRY_SECONDS)})


def too_long(n_prompt: int, length: int) -> ApiError:
    return ApiError(
        400,
        f"the prompt has {n_prompt} tokens; the context has room for {length}, and at least one is for the answer",
        param="messages",
        code="context_length_exceeded",
    )
