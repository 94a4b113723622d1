"""Token ids in, token ids out: prefill, then one token a step with a cache of keys and values. Knows no text.

Every row of a batch draws from its own generator, so its text does not depend on its neighbours.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from launchyard.model.network.kv_cache import Cache
from launchyard.model.network.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """Rules for drawing the next token. `temperature` 0 takes the likeliest; top_k, then top_p, cut the tail before."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(
                f"temperature is {self.temperature}; it must be at least 0 (0: always the likeliest token)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 1, or none to keep all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1]")


def generate(
    model: Transformer,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    seed: int | None = None,
) -> Iterator[int]:
    """The tokens that follow `ids`, one by one as they are made; see generate_batch."""
    steps = generate_batch(
        model,
        [ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_ids=stop_ids,
        seed=seed,
    )
    return (token for (token,) in steps if token is not None)


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    seed: int | None = None,
) -> Iterator[list[int | None]]:
    """A step at a time, the next token of every prompt; None for the rows that have ended.

    Prompts may differ in length. A row ends after `max_new_tokens`, before a token of `stop_ids`, and at the model's
    position_limit. Row r draws with seed + r, so that alone with that seed it becomes the same. The arguments are
    checked now, not at the first step: ValueError for an empty or too long prompt, or an id the model does not have.
    """
    sampling = Sampling(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 0")
    for prompt in prompts:
        _check_prompt(model, prompt)
    first_seed = secrets.randbits(62) if seed is None else seed
    limit = model.config.position_limit
    rows = [
        _Row(
            n,
            list(prompt),
            max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt)),
            torch.Generator().manual_seed(first_seed + n),
        )
        for n, prompt in enumerate(prompts)
    ]
    return _steps(model, rows, sampling, frozenset(stop_ids))


def _check_prompt(model: Transformer, prompt: Sequence[int]) -> None:
    config = model.config
    if not prompt:
        raise ValueError("the prompt is empty; a model needs at least one token to go on from")
    if config.position_limit is not None and len(prompt) > config.position_limit:
        raise ValueError(f"the prompt has {len(prompt)} tokens; this model has max_seq_len {config.max_seq_len}")
    strange = [token for token in prompt if not 0 <= token < config.padded_vocab_size]
    if strange:
        raise ValueError(
            f"token {strange[0]} is not in the model's vocabulary of {config.padded_vocab_size}; is the tokenizer "
            "another model's?"
        )


@dataclass
class _Row:
    number: int
    ids: list[int]  # the prompt, then the drawn tokens
    remaining: int
    generator: torch.Generator


def _steps(
    model: Transformer, rows: list[_Row], sampling: Sampling, stop_ids: frozenset[int]
) -> Iterator[list[int | None]]:
    total = len(rows)
    rows = [row for row in rows if row.remaining > 0]
    if not rows:
        return
    cache, logits = _prefill(model, rows)
    while True:
        uniform = [torch.rand((), generator=row.generator, dtype=torch.float64).item() for row in rows]
        drawn = draw_tokens(logits[:, : model.config.vocab_size], sampling, uniform)
        step: list[int | None] = [None] * total
        active = []
        for at, (row, token) in enumerate(zip(rows, drawn, strict=True)):
            if token not in stop_ids:
                step[row.number] = token
                row.ids.append(token)
                row.remaining -= 1
                if row.remaining:
                    active.append(at)
        if any(token is not None for token in step):
            yield step
        if not active:
            return
        if len(active) < len(rows):
            cache.keep(active)
            rows = [rows[at] for at in active]
        logits = _decode(model, cache, [row.ids[-1] for row in rows])


@torch.inference_mode()
def _prefill(model: Transformer, rows: list[_Row]) -> tuple[Cache, Tensor]:
    """A cache with all prompts, and the logits behind each: (B, padded_vocab_size)."""
    lengths = [len(row.ids) for row in rows]
    weight = model.embed.weight
    tokens = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    for at, row in enumerate(rows):
        tokens[at, : lengths[at]] = torch.tensor(row.ids)
    cache = Cache(
        model.config,
        batch_size=len(rows),
        length=max(len(row.ids) + row.remaining for row in rows),
        dtype=weight.dtype,
        device=weight.device,
    )
    last = torch.tensor(lengths, device=weight.device) - 1
    cache.expect(lengths)
    logits = model(
        tokens.to(weight.device),
        cache=cache,
        head=lambda hidden, head: head(hidden[torch.arange(len(rows), device=last.device), last]),
    )
    return cache, logits


@torch.inference_mode()
def _decode(model: Transformer, cache: Cache, tokens: list[int]) -> Tensor:
    """One more token a row -> logits (B, padded_vocab_size)."""
    return model(torch.tensor(tokens, device=cache.device)[:, None], cache=cache)[:, 0]


@torch.inference_mode()
def draw_tokens(logits: Tensor, sampling: Sampling, uniform: Sequence[float]) -> list[int]:
    """A token a row from logits (B, V); `uniform` holds a number in [0, 1) a row, which decides alone."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    k = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    if k < logits.shape[-1] or sampling.top_p is not None:
        values, ids = torch.topk(logits, k) if k < logits.shape[-1] else torch.sort(logits, descending=True)
    else:
        values = logits
        ids = None
    mass = torch.softmax(values.double() / sampling.temperature, dim=-1).cumsum(-1)  # fp64: a long tail must not round
    if sampling.top_p is not None:  # the fewest tokens that together reach top_p
        last = (mass < sampling.top_p).sum(-1, keepdim=True).clamp(max=k - 1)
        total = mass.gather(-1, last)
    else:
        total = mass[:, -1:]
    targets = torch.tensor(uniform, dtype=torch.float64, device=logits.device)[:, None] * total
    at = torch.searchsorted(mass, targets, right=True).clamp(max=k - 1)
    return (at if ids is None else ids.gather(-1, at))[:, 0].tolist()
