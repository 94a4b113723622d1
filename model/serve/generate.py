"""One text, or some, without an engine of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launchyard.model.network.transformer import Transformer
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.requests import Generation, Request


def generate(model: Transformer, request: Request) -> Iterator[int]:
    """The new tokens, one by one as they are made. ValueError, now and not at the first token, as of Engine.add."""
    engine = engine_for(model, [request], n_slots=1)
    generation = engine.add(request)
    return _tokens(engine, generation)


def _tokens(engine: Engine, generation: Generation) -> Iterator[int]:
    given = 0
    while generation.ended is None:
        engine.step()
        yield from generation.new[given:]
        given = len(generation.new)


def generate_all(model: Transformer, requests: Sequence[Request], *, n_slots: int = 8) -> list[Generation]:
    """All texts, in the order of their requests."""
    engine = engine_for(model, requests, n_slots=min(n_slots, len(requests)))
    generations = [engine.add(request) for request in requests]
    while not engine.is_idle:
        engine.step()
    return generations


def engine_for(
    model: Transformer,
    requests: Sequence[Request],
    *,
    n_slots: int,
    context_length: int | None = None,
    graphs: bool | None = None,
) -> Engine:
    """An engine with room for the longest of these requests; context_length: but for no more positions."""
    limits = [limit for limit in (model.config.position_limit, context_length) if limit is not None]
    longest = max((len(request.prompt) + request.max_new_tokens for request in requests), default=1)
    return Engine(
        model,
        n_slots=max(1, n_slots),
        length=min(longest, *limits) if limits else longest,
        rewindable=any(request.drafter is not None for request in requests),
        graphs=graphs,
    )
