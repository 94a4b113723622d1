"""/v1/completions"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from launchyard.model.serve.http.asking import request_for, room_for
from launchyard.model.serve.http.bodies import MOST_TEXTS, CompletionBody
from launchyard.model.serve.http.errors import ApiError
from launchyard.model.serve.http.server import Server
from launchyard.model.serve.http.service import NewText, TextJob
from launchyard.model.serve.http.streams import cancelled_at_end, event_stream, unless_gone
from launchyard.model.serve.http.wording import CompletionOdds, finish_reason, joined, usage_of

Table = dict[str, list[object]]


@dataclass
class _Choice:
    """What has come of one text. begun: the prompt has been echoed."""

    odds: CompletionOdds
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    reason: str | None = None
    begun: bool = False


class _Completion:
    """One request for texts: choice p * n + k is text k behind prompt p."""

    def __init__(self, server: Server, body: CompletionBody, prompts: list[list[int]]) -> None:
        self._server = server
        self._body = body
        self._prompts = prompts
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": server.name,
            "system_fingerprint": server.version or None,
        }
        self._n_new = 0

    def submit(self) -> TextJob:
        body = self._body
        sampling = self._server.sampling(body)
        requests = [
            request_for(
                self._server.model,
                body,
                ids,
                sampling=sampling,
                max_new_tokens=room_for(ids, body.max_tokens, self._server.length),
                number=number,
                n_alternatives=body.logprobs,
                prompt_odds=body.echo and body.logprobs is not None,
            )
            for ids in self._prompts
            for number in range(body.n)
        ]
        form = self._server.structured(body)
        if form is not None:
            requests = [replace(request, constraint=form.copy()) for request in requests]
        return self._server.service.submit(requests, stops=body.stops, skip_special=body.skip_special_tokens)

    async def whole(self, job: TextJob) -> Response:
        choices = self._choices(job)
        async with cancelled_at_end(self._server.service, job):
            async for piece in job.pieces():
                self._take(job, choices[piece.number], piece)
        told = [
            self._choice(number, "".join(choice.text), joined(choice.tables) if choice.tables else None, choice.reason)
            for number, choice in enumerate(choices)
        ]
        return JSONResponse({**self._head, "choices": told, "usage": self._usage(job)})

    async def chunks(self, job: TextJob) -> AsyncIterator[Mapping[str, object]]:
        choices = self._choices(job)
        options = self._body.stream_options
        async with cancelled_at_end(self._server.service, job):
            async for piece in job.pieces():
                choice = choices[piece.number]
                self._take(job, choice, piece)
                text = "".join(choice.text)
                if text or piece.ended is not None:
                    table = joined(choice.tables) if choice.tables else None
                    yield {**self._head, "choices": [self._choice(piece.number, text, table, choice.reason)]}
                    choice.text.clear()
                    choice.tables.clear()
            if options is not None and options.include_usage:
                yield {**self._head, "choices": [], "usage": self._usage(job)}

    def _choices(self, job: TextJob) -> list[_Choice]:
        return [_Choice(CompletionOdds(self._server.model.tokenizer)) for _ in job.requests]

    def _take(self, job: TextJob, choice: _Choice, piece: NewText) -> None:
        wants_odds = self._body.logprobs is not None
        generation = job.generations[piece.number]
        if self._body.echo and not choice.begun:
            prompt = generation.request.prompt
            choice.text.append(self._server.model.tokenizer.decode(prompt, skip_special=self._body.skip_special_tokens))
            if wants_odds:
                choice.tables += [choice.odds.first(prompt[0]), choice.odds.of(generation.prompt_odds)]
        choice.begun = True
        self._n_new += len(piece.tokens)
        choice.text.append(piece.text)
        choice.reason = finish_reason(piece.ended)
        if wants_odds and piece.odds:
            choice.tables.append(choice.odds.of(piece.odds))

    def _choice(self, number: int, text: str, table: Table | None, reason: str | None) -> Mapping[str, object]:
        return {"index": number, "text": text, "logprobs": table, "finish_reason": reason}

    def _usage(self, job: TextJob) -> dict[str, object]:
        return usage_of(sum(map(len, self._prompts)), job.generations, self._n_new)


async def completions(http: HttpRequest) -> Response:
    server: Server = http.app.state.server
    body = await server.read(http, CompletionBody)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options is for stream: true", param="stream_options")
    completion = _Completion(server, body, await _prompts(server, body))
    job = completion.submit()
    if body.stream:
        return event_stream(completion.chunks(job))
    return await unless_gone(http, lambda: completion.whole(job))


async def _prompts(server: Server, body: CompletionBody) -> list[list[int]]:
    """Ids of each prompt: text as the tokenizer takes it, or ids as they are."""
    found = body.prompt
    one = isinstance(found, str) or (found and isinstance(found[0], int))
    if (count := body.n * (1 if one else len(found))) > MOST_TEXTS:
        raise ApiError(400, f"{count} texts are asked for at once; {MOST_TEXTS} are allowed", param="prompt")
    texts = [found] if isinstance(found, str) else [one for one in found if isinstance(one, str)]
    if texts:
        prompts = [await server.encode(text) if text else server.model.encode(text) for text in texts]
    else:
        numbers = [one for one in found if isinstance(one, int)]
        prompts = [numbers] if numbers else [list(one) for one in found if isinstance(one, list)]
    if not prompts or not all(prompts):
        raise ApiError(400, "a prompt is empty; give text or ids", param="prompt")
    return prompts
