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

from launchyard.model.serve.constrained import GrammarConstraint
from launchyard.model.serve.http.asking import request_for, room_for
from launchyard.model.serve.http.bodies import ChatBody, plain_messages
from launchyard.model.serve.http.errors import ApiError
from launchyard.model.serve.http.server import Server
from launchyard.model.serve.http.service import NewText, TextJob
from launchyard.model.serve.http.streams import cancelled_at_end, event_stream, unless_gone
from launchyard.model.serve.http.wording import chat_odds, finish_reason, usage_of
from launchyard.model.serve.tools.asked import Tools
from launchyard.model.serve.tools.parse import ToolCall, ToolText
from launchyard.model.serve.tools.use import ToolUse, use_tools
from launchyard.model.text.companions import Json

Found = TypeVar("Found")


@dataclass(frozen=True)
class _Prompt:
    """What the model reads, and what its answer must fit or may hold."""

    ids: list[int]
    constraint: GrammarConstraint | None = None
    tools: ToolUse | None = None


class _Answer:
    """What has come of one text."""

    def __init__(self, tools: ToolUse | None) -> None:
        self.text: list[str] = []
        self.calls: list[ToolCall] = []
        self.odds: list[dict[str, object]] = []
        self.reason: str | None = None
        self._parser = None if tools is None else tools.parser()

    def take(self, piece: NewText) -> ToolText:
        """What has become sure with a piece."""
        found = ToolText(piece.text) if self._parser is None else self._parser.add(piece.text)
        if piece.ended is not None and self._parser is not None:
            rest = self._parser.flush()
            found = ToolText(found.content + rest.content, found.calls + rest.calls)
        self.text.append(found.content)
        self.calls += found.calls
        if piece.ended is not None or self.is_over:
            self.reason = "tool_calls" if self.calls else finish_reason(piece.ended)
        return found

    @property
    def is_over(self) -> bool:
        """True if the model may go on, and nothing more of it counts."""
        return self._parser is not None and self._parser.is_over

    def message(self) -> Json:
        text = "".join(self.text)
        message: Json = {"role": "assistant", "content": text if text or not self.calls else None, "refusal": None}
        return {**message, "tool_calls": [call.as_json() for call in self.calls]} if self.calls else message


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
        form = self._prompt.constraint
        if form is not None:
            requests = [replace(request, constraint=form.copy()) for request in requests]
        tools = self._prompt.tools
        skip_special = body.skip_special_tokens and (tools is None or tools.skip_special)
        return self._server.service.submit(requests, stops=body.stops, skip_special=skip_special)

    async def whole(self, job: TextJob) -> Response:
        answers = [_Answer(self._prompt.tools) for _ in job.requests]
        async with cancelled_at_end(self._server.service, job):
            async for piece in job.pieces():
                self._n_new += len(piece.tokens)
                answer = answers[piece.number]
                answer.take(piece)
                answer.odds += self._odds(piece)
                if all(one.is_over for one in answers):
                    break
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
        answers = [_Answer(self._prompt.tools) for _ in job.requests]
        async with cancelled_at_end(self._server.service, job):
            for number in range(len(job.requests)):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async for piece in job.pieces():
                self._n_new += len(piece.tokens)
                answer = answers[piece.number]
                answer.odds += self._odds(piece)  # those of tokens whose text is not sure wait for it
                if answer.reason is not None:  # what it writes behind its call
                    continue
                found = answer.take(piece)
                if found.content or (answer.odds and piece.ended):
                    yield self._chunk(piece.number, {"content": found.content}, odds=answer.odds)
                    answer.odds = []
                for place, call in enumerate(found.calls, len(answer.calls) - len(found.calls)):
                    yield self._chunk(piece.number, {"tool_calls": [{"index": place, **call.as_json()}]})
                if answer.reason is not None:
                    yield self._chunk(piece.number, {}, reason=answer.reason)
                if all(one.is_over for one in answers):
                    break
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
    _check_template(server)
    several = body.parallel_tool_calls
    tools = _named("tools", lambda: Tools.read(body.tools, body.tool_choice, parallel=several))
    form = body.response_format
    if tools is None:
        wanted = None if form is None else _named("response_format", lambda: server.constraint(form))
        ids = _named("messages", lambda: _ids(server, body, messages))
        return _Prompt(ids, wanted or server.structured(body))
    if body.structured_outputs or body.continue_final_message or not body.add_generation_prompt:
        raise ApiError(400, "tools need a new answer of the model's own form", param="tools")
    model = server.model
    use = _named("tools", lambda: use_tools(tools, model.chat, model.tokenizer))
    n_vocab = model.transformer.config.vocab_size
    constraint = _named("tools", lambda: use.constraint(n_vocab, model.stop_ids, response_format=form))
    return _Prompt(_named("messages", lambda: use.ids(messages)), constraint, use)


def _check_template(server: Server) -> None:
    try:
        server.model.chat  # noqa: B018
    except ValueError as error:
        what = "this model has no chat template, so no chats: ask /v1/completions, or serve it with --style NAME"
        raise ApiError(400, what, code="no_chat_template") from error


def _ids(server: Server, body: ChatBody, messages: Sequence[Json]) -> list[int]:
    chat = server.model.chat
    if body.continue_final_message:
        return chat.ids_to_continue(messages)
    if body.add_generation_prompt:
        return chat.ids_for_generation(messages)
    return chat.encode_chat(chat.chat_text(messages)).ids


def _named(param: str, work: Callable[[], Found]) -> Found:
    """The result of some work, whose fault lies in this field."""
    try:
        return work()
    except (ValueError, FileNotFoundError) as error:
        raise ApiError(400, str(error), param=param) from error
