"""What all routes share: the model that is served now, its name, and reading a request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import anyio
from starlette.requests import Request as HttpRequest

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.constrained import GrammarConstraint, constraint_for
from launchyard.model.serve.http.asking import sampling_of, structured_form
from launchyard.model.serve.http.bodies import Body, SamplingBody, read_body, read_fields
from launchyard.model.serve.http.errors import ApiError
from launchyard.model.serve.http.service import Service
from launchyard.model.serve.sampling import Sampling
from launchyard.model.text.companions import Json

MAX_BODY = 16 << 20  # bytes
BODY_SECONDS = 60.0


@dataclass
class Server:
    """name: that of the model in requests and answers. version: which of its weights are served, in words."""

    service: Service
    name: str
    version: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model(self) -> LoadedModel:
        return self.service.model

    @property
    def length(self) -> int:
        """Tokens of a context."""
        return self.service.engine.length

    def constraint(self, form: Mapping[str, object]) -> GrammarConstraint | None:
        """Of a response format; ValueError names what is wrong with it. Each text needs a copy."""
        model = self.model
        return constraint_for(form, model.tokenizer, model.transformer.config.vocab_size, model.stop_ids)

    def structured(self, body: SamplingBody) -> GrammarConstraint | None:
        """As structured_outputs asks for. ApiError names what is wrong with it."""
        if not body.structured_outputs:
            return None
        try:
            return self.constraint(structured_form(body.structured_outputs))
        except ValueError as error:
            raise ApiError(400, f"structured_outputs: {error}", param="structured_outputs") from error

    def sampling(self, body: SamplingBody) -> Sampling:
        return sampling_of(body, self.model.sampling_rules)

    def check_name(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise ApiError(
                404,
                f"there is no model {name!r} here; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    async def read(self, http: HttpRequest, kind: type[Body]) -> Body:
        body = read_body(kind, await self.fields(http))
        self.check_name(body.model)
        return body

    async def fields(self, http: HttpRequest) -> Json:
        return read_fields(await _whole_body(http))

    async def encode(self, text: str, *, special: bool = True) -> list[int]:
        """In a thread: a long text takes a while."""
        tokenizer = self.model.tokenizer
        return await anyio.to_thread.run_sync(lambda: tokenizer.encode(text, special=special))


async def _whole_body(http: HttpRequest) -> bytes:
    """ApiError if it is too large, or does not come."""
    pieces = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for piece in http.stream():
                pieces += piece
                if len(pieces) > MAX_BODY:
                    raise ApiError(413, f"the body has more than {MAX_BODY >> 20} MiB", code="body_too_large")
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:.0f} s", code="timeout") from None
    return bytes(pieces)
