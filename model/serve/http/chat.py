"""/v1/chat/completions"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import anyio
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from launchyard.model.serve.http.asking import request_for, room_for
from launchyard.model.serve.http.bodies import ChatBody, plain_messages
from launchyard.model.serve.http.errors import ApiError
from launchyard.model.serve.http.server import Server
from launchyard.model.serve.http.service import NewText, TextJob
from launchyard.model.serve.http.streams import cancelled_at_end, event_stream, unless_gone
from launchyard.model.serve.http.wording import chat_odds, finish_reason, usage_of


@dataclass
class _Answer:
    """What has come of one text."""

    text: list[str] = field(default_factory=list)
    odds: list[dict[str, object]] = field(default_factory=list)
    reason: str | None = None


class _Chat:
    """One request for answers."""

    def __init__(self, server: Server, body: ChatBody, ids: list[int]) -> None:
        self._server = server
        self._body = body
        self._ids = ids
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": server.name,
            "system_fingerprint": server.version or None,
        }
        self._n_new = 0

    def submit(self) -> TextJob:
        body = self._body
        wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        sampling = self._server.sampling(body)
        requests = [
            request_for(
                self._server.model,
                body,
                self._ids,
                sampling=sampling,
                max_new_tokens=room_for(self._ids, wanted, self._server.length),
                number=number,
                n_alternatives=(body.top_logprobs or 0) if body.logprobs else None,
            )
            for number in range(body.n)
        ]
        return self._server.service.submit(requests, stops=body.stops, skip_special=body.skip_special_tokens)

    async def whole(self, job: TextJob) -> Response:
        answers = [_Answer() for _ in job.requests]
        async with cancelled_at_end(self._server.service, job):
            async for piece in job.pieces():
                self._n_new += len(piece.tokens)
                answer = answers[piece.number]
                answer.text.append(piece.text)
                answer.odds += self._odds(piece)
                answer.reason = finish_reason(piece.ended)
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": "".join(answer.text), "refusal": None},
                "logprobs": {"content": answer.odds, "refusal": None} if self._body.logprobs else None,
                "finish_reason": answer.reason,
            }
            for number, answer in enumerate(answers)
        ]
        return JSONResponse({**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage(job)})

    async def chunks(self, job: TextJob) -> AsyncIterator[Mapping[str, object]]:
        options = self._body.stream_options
        held: dict[int, list[dict[str, object]]] = {}  # odds of tokens whose text is not sure
        async with cancelled_at_end(self._server.service, job):
            for number in range(len(job.requests)):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async for piece in job.pieces():
                self._n_new += len(piece.tokens)
                odds = held.setdefault(piece.number, [])
                odds += self._odds(piece)
                if piece.text or (odds and piece.ended):
                    yield self._chunk(piece.number, {"content": piece.text}, odds=held.pop(piece.number))
                if piece.ended is not None:
                    yield self._chunk(piece.number, {}, reason=finish_reason(piece.ended))
            if options is not None and options.include_usage:
                yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage(job)}

    def _chunk(
        self,
        number: int,
        delta: Mapping[str, object],
        *,
        odds: list[dict[str, object]] | None = None,
        reason: str | None = None,
    ) -> Mapping[str, object]:
        logprobs = {"content": odds, "refusal": None} if self._body.logprobs and odds else None
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _odds(self, piece: NewText) -> list[dict[str, object]]:
        return chat_odds(self._server.model.tokenizer, piece.odds) if self._body.logprobs else []

    def _usage(self, job: TextJob) -> dict[str, object]:
        return usage_of(len(self._ids), job.generations, self._n_new)


async def chat_completions(http: HttpRequest) -> Response:
    server: Server = http.app.state.server
    body = await server.read(http, ChatBody)
    _check(body)
    ids = await anyio.to_thread.run_sync(lambda: _prompt(server, body))
    chat = _Chat(server, body, ids)
    job = chat.submit()
    if body.stream:
        return event_stream(chat.chunks(job))
    return await unless_gone(http, lambda: chat.whole(job))


def _check(body: ChatBody) -> None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is for stream: true", param="stream_options")
    if body.continue_final_message and (body.messages[-1].get("role") != "assistant"):
        raise ApiError(400, "continue_final_message needs a last message of the assistant", param="messages")


def _prompt(server: Server, body: ChatBody) -> list[int]:
    """Ids by the model's own template, which writes every special token itself."""
    messages = plain_messages(body.messages)
    try:
        chat = server.model.chat
        if body.continue_final_message:
            return chat.ids_to_continue(messages)
        if body.add_generation_prompt:
            return chat.ids_for_generation(messages)
        return chat.encode_chat(chat.chat_text(messages)).ids
    except (ValueError, FileNotFoundError) as error:
        raise ApiError(400, str(error), param="messages") from error
