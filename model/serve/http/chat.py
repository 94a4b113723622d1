"""/v1/chat/completions"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import anyio
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from launchyard.model.serve.constrained import MakeConstraint
from launchyard.model.serve.http.asking import request_for, room_for
from launchyard.model.serve.http.bodies import ChatBody, plain_messages
from launchyard.model.serve.http.errors import ApiError
from launchyard.model.serve.http.server import Server
from launchyard.model.serve.http.service import NewText, TextJob
from launchyard.model.serve.http.streams import cancelled_at_end, event_stream, unless_gone
from launchyard.model.serve.http.wording import chat_odds, finish_reason, usage_of
from launchyard.model.serve.tools import CallReader, Syntax, read_tools, syntax_of
from launchyard.model.text.companions import Json

Found = TypeVar("Found")


@dataclass(frozen=True)
class _Prompt:
    """What the model reads, and what its answer must fit or may hold."""

    ids: list[int]
    constraint: MakeConstraint | None = None
    syntax: Syntax | None = None  # of calls


class _Answer:
    """What has come of one text."""

    def __init__(self, syntax: Syntax | None) -> None:
        self.text: list[str] = []
        self.calls: list[Json] = []
        self.odds: list[dict[str, object]] = []
        self.reason: str | None = None
        self._reader = None if syntax is None else CallReader(syntax)

    def take(self, piece: NewText) -> str:
        """The part of a piece that is no call; at the end the calls are known."""
        text = piece.text if self._reader is None else self._reader.add(piece.text)
        if piece.ended is not None:
            self.reason = finish_reason(piece.ended)
            if self._reader is not None:
                rest, self.calls = self._reader.finish()
                text += rest
                self.reason = "tool_calls" if self.calls else self.reason
        self.text.append(text)
        return text

    def message(self) -> Json:
        text = "".join(self.text)
        content = None if self.calls and not text else text
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        return {**message, "tool_calls": self.calls} if self.calls else message


class _Chat:
    """One request for answers."""

    def __init__(self, server: Server, body: ChatBody, prompt: _Prompt) -> None:
        self._server = server
        self._body = body
        self._prompt = prompt
        self._ids = prompt.ids
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
        make = self._prompt.constraint
        if make is not None:
            requests = [replace(request, constraint=make()) for request in requests]
        marks = self._prompt.syntax is not None  # of calls may be special tokens
        skip_special = body.skip_special_tokens and not marks
        return self._server.service.submit(requests, stops=body.stops, skip_special=skip_special)

    async def whole(self, job: TextJob) -> Response:
        answers = [_Answer(self._prompt.syntax) for _ in job.requests]
        async with cancelled_at_end(self._server.service, job):
            async for piece in job.pieces():
                self._n_new += len(piece.tokens)
                answer = answers[piece.number]
                answer.take(piece)
                answer.odds += self._odds(piece)
        choices = [
            {
                "index": number,
                "message": answer.message(),
                "logprobs": {"content": answer.odds, "refusal": None} if self._body.logprobs else None,
                "finish_reason": answer.reason,
            }
            for number, answer in enumerate(answers)
        ]
        return JSONResponse({**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage(job)})

    async def chunks(self, job: TextJob) -> AsyncIterator[Mapping[str, object]]:
        options = self._body.stream_options
        answers = [_Answer(self._prompt.syntax) for _ in job.requests]
        async with cancelled_at_end(self._server.service, job):
            for number in range(len(job.requests)):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async for piece in job.pieces():
                self._n_new += len(piece.tokens)
                answer = answers[piece.number]
                answer.odds += self._odds(piece)  # those of tokens whose text is not sure wait for it
                text = answer.take(piece)
                if text or (answer.odds and piece.ended):
                    yield self._chunk(piece.number, {"content": text}, odds=answer.odds)
                    answer.odds = []
                for place, call in enumerate(answer.calls):
                    yield self._chunk(piece.number, {"tool_calls": [{"index": place, **call}]})
                if piece.ended is not None:
                    yield self._chunk(piece.number, {}, reason=answer.reason)
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
    chat = _Chat(server, body, await anyio.to_thread.run_sync(lambda: _prompt(server, body)))
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


def _prompt(server: Server, body: ChatBody) -> _Prompt:
    """By the model's own template, which writes every special token itself."""
    messages = plain_messages(body.messages)
    tools = _named("tools", lambda: read_tools(body.tools, body.tool_choice, several=body.parallel_tool_calls))
    constraint = server.structured(body)
    if body.response_format is not None:
        wanted = body.response_format
        constraint = _named("response_format", lambda: server.grammars.of_response_format(wanted)) or constraint
    if tools is None or tools.choice == "none":
        return _Prompt(_named("messages", lambda: _ids(server, body, messages, ())), constraint)
    if constraint is not None:
        raise ApiError(400, "an answer cannot both fit a format and be a call; leave out one", param="response_format")
    chat = server.model.chat
    syntax = _named("tools", lambda: syntax_of(chat.template(tools=True).text))
    if tools.choice == "required":
        grammar = tools.grammar(syntax, server.model.tokenizer)
        constraint = _named("tools", lambda: server.grammars.of_lark(grammar))
    return _Prompt(_named("messages", lambda: _ids(server, body, messages, tools.specs)), constraint, syntax)


def _ids(server: Server, body: ChatBody, messages: Sequence[Json], tools: Sequence[Json]) -> list[int]:
    chat = server.model.chat
    if body.continue_final_message:
        return chat.ids_to_continue(messages, tools=tools)
    if body.add_generation_prompt:
        return chat.ids_for_generation(messages, tools=tools)
    return chat.encode_chat(chat.chat_text(messages, tools=tools)).ids


def _named(param: str, work: Callable[[], Found]) -> Found:
    """The result of some work, whose fault lies in this field."""
    try:
        return work()
    except (ValueError, FileNotFoundError) as error:
        raise ApiError(400, str(error), param=param) from error
