"""Log-likelihoods of many continuations, each behind its context. Knows ids and a network, no text and no task.

Rows lie end to end in one row of documents, so that no position is padding; what several pairs have in common at their
beginning, up to the whole of one, is computed once; and the head sees the positions that are asked about alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from launchyard.model.network.documents import Documents
from launchyard.model.network.positions import rotation_regime
from launchyard.model.network.transformer import Projection, Transformer

BATCH_TOKENS = 8192  # of one forward
_LOGIT_BYTES = 64 * 2**20  # of fp32 logits at once
TokenIds = Sequence[int]
# Called with the pairs that are done, and with those of all.
OnPairs = Callable[[int, int], None]


class Score(NamedTuple):
    """Of a continuation: the sum of its tokens' natural log-probabilities; True if each was the likeliest."""

    logprob: float
    is_greedy: bool


@dataclass
class _Row:
    """Tokens that go through the network. pairs: those that are read from them, each with its own number of them."""

    ids: tuple[int, ...]
    pairs: list[tuple[int, int]]


def score(
    model: Transformer,
    pairs: Sequence[tuple[TokenIds, TokenIds]],
    *,
    max_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    on_progress: OnPairs | None = None,
) -> list[Score]:
    """The score of each continuation behind its context, in order.

    max_length: so many tokens before the last one are seen, by default all that the model has; the context is cut from
    the left. ValueError for an empty context or continuation, or a continuation longer than max_length.
    """
    limit = max_length or model.config.max_seq_len
    rows = _merged(model, [_inputs(*pair, limit) for pair in pairs])
    found: dict[int, Score] = {}
    for batch in _batches(rows, batch_tokens):
        found.update(_forward(model, batch, [continuation for _, continuation in pairs]))
        if on_progress is not None:
            on_progress(len(found), len(pairs))
    return [found[place] for place in range(len(pairs))]


def _inputs(context: TokenIds, continuation: TokenIds, max_length: int) -> tuple[int, ...]:
    """All but the last token, whose successor nobody asks for."""
    if not context or not continuation:
        empty = "continuation" if context else "context"
        raise ValueError(f"a {empty} has no tokens; each pair needs one or more of both")
    if len(continuation) > max_length:
        raise ValueError(f"a continuation has {len(continuation)} tokens; max_length is {max_length}")
    return (*context, *continuation)[-(max_length + 1) : -1]


def _merged(model: Transformer, inputs: Sequence[tuple[int, ...]]) -> list[_Row]:
    """The rows without those that another begins with, the longest first.

    Sorted, a row stands directly before those that begin with it. One whose positions turn otherwise, since the
    frequencies depend on the length, is computed by itself.
    """
    rows: list[_Row] = []
    for place in sorted(range(len(inputs)), key=inputs.__getitem__):
        ids = inputs[place]
        last = rows[-1] if rows else None
        if last is not None and ids[: len(last.ids)] == last.ids and _turn_alike(model, len(last.ids), len(ids)):
            last.ids = ids
            last.pairs.append((place, len(ids)))
        else:
            rows.append(_Row(ids, [(place, len(ids))]))
    return sorted(rows, key=lambda row: -len(row.ids))


def _turn_alike(model: Transformer, one: int, other: int) -> bool:
    return one == other or rotation_regime(model.config, one) == rotation_regime(model.config, other)


def _batches(rows: Iterable[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """As many rows as fit; one that is longer is a batch of its own."""
    batch: list[_Row] = []
    n_tokens = 0
    for row in rows:
        if batch and n_tokens + len(row.ids) > batch_tokens:
            yield batch
            batch = []
            n_tokens = 0
        batch.append(row)
        n_tokens += len(row.ids)
    if batch:
        yield batch


@torch.inference_mode()
def _forward(
    model: Transformer, rows: Sequence[_Row], continuations: Sequence[TokenIds]
) -> Iterator[tuple[int, Score]]:
    """Places of the rows' pairs, and their scores."""
    ends = list(accumulate(len(row.ids) for row in rows))
    order = [pair for row in rows for pair, _ in row.pairs]
    targets = [token for pair in order for token in continuations[pair]]
    at: list[int] = []  # where in the batch each target is foretold
    for row, end in zip(rows, ends, strict=True):
        for pair, length in row.pairs:
            stop = end - len(row.ids) + length
            at.extend(range(stop - len(continuations[pair]), stop))
    device = model.embed.weight.device
    told = model(
        _checked(model, [token for row in rows for token in row.ids])[None].to(device),
        documents=Documents(tuple(len(row.ids) for row in rows), row_length=ends[-1]),
        at=torch.tensor(at, device=device),
        head=partial(_told, _checked(model, targets).to(device)),
    ).tolist()
    if any(math.isnan(logprob) for logprob, _ in told):
        raise ValueError(
            "the model gives no odds but NaN: its weights hold such numbers, or it computes some that its type cannot "
            "hold (fp16 ends at 65504), where --dtype float32 helps"
        )
    start = 0
    for pair in order:
        own = told[start : start + len(continuations[pair])]
        start += len(own)
        yield pair, Score(math.fsum(logprob for logprob, _ in own), all(greedy for _, greedy in own))


def _checked(model: Transformer, ids: Sequence[int]) -> Tensor:
    tokens = torch.tensor(ids)
    if (highest := int(tokens.max())) >= model.config.padded_vocab_size:
        raise ValueError(
            f"token {highest} is not in the model's vocabulary of {model.config.padded_vocab_size}; is the tokenizer "
            "another model's?"
        )
    return tokens


def _told(targets: Tensor, hidden: Tensor, projection: Projection) -> Tensor:
    """hidden (K, dim), targets (K,) -> (K, 2) fp32: the log-probability of each target, and 1 if none is likelier."""
    told = hidden.new_empty(len(targets), 2, dtype=torch.float32)
    n_rows = max(1, _LOGIT_BYTES // (4 * len(projection.weight)))
    for start in range(0, len(targets), n_rows):
        logits = projection(hidden[start : start + n_rows]).float()  # (n, padded_vocab_size)
        wanted = targets[start : start + n_rows, None]
        told[start : start + n_rows, 0] = (logits.gather(1, wanted) - logits.logsumexp(1, keepdim=True))[:, 0]
        told[start : start + n_rows, 1] = logits.argmax(1) == wanted[:, 0]
    return told
