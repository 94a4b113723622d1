"""Seconds of a training step on one machine, out of those of its pieces, measured there. Closed forms. Light.

A calibration holds those pieces: blocks of some widths, attention, the head with its loss, the update. What is known of
no piece is not guessed: the answer is None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from launchyard.model.config import ModelConfig
from launchyard.model.cost import attention_flops, forward_flops, n_params

CALIBRATION_VERSION = 1  # of its pieces: a file of another one is measured again
BLOCK_LENGTH = 512  # tokens of the sequences on which blocks were measured


class _Piece(BaseModel):
    model_config = ConfigDict(frozen=True)


class BlockRate(_Piece):
    """Operations per second of forward and backward together, of products alone; forward: its share of the time."""

    width: int
    gated: bool
    rate: float
    forward: float


class AttentionRate(_Piece):
    """Operations per second of forward and backward, counted whole."""

    length: int
    rate: float


class HeadTime(_Piece):
    """Seconds of a token's loss, forward and backward, for each row of the head."""

    width: int
    seconds: float


class Calibration(_Piece):
    """One worker on this machine, in fp32. matmul_flops: the most operations a second, those of a large product."""

    version: int = CALIBRATION_VERSION
    machine: str = Field(description="What it is of: the processor, and torch.")
    date: str
    threads: int
    matmul_flops: float
    blocks: tuple[BlockRate, ...]
    attention: tuple[AttentionRate, ...]
    heads: tuple[HeadTime, ...]
    table_seconds: float = Field(description="Of the gradient of a micro-batch, for each element of the head.")
    update_seconds: float = Field(description="Of clipping and AdamW, for each parameter.")


def step_seconds(
    config: ModelConfig,
    calibration: Calibration,
    *,
    micro_batch_size: int,
    grad_accum_steps: int,
    seq_len: int,
    checkpointing: Literal["none", "full", "op"] = "none",
    every: int = 1,
) -> float | None:
    """Of a step of one worker that trains all parameters; None where the calibration has no piece that is like it."""
    if not _is_plain(config) or checkpointing == "op":
        return None
    rates = [piece for piece in calibration.blocks if piece.gated == config.gated_mlp]
    if not rates:
        return None
    rate = _between([(piece.width, piece.rate) for piece in rates], config.dim)
    forward = _between([(piece.width, piece.forward) for piece in rates], config.dim)
    flops = forward_flops(config, seq_len)
    products = 3 * (flops["attention"] + flops["mlp"]) / rate
    attention = 3 * flops["scores"] / _between([(piece.length, piece.rate) for piece in calibration.attention], seq_len)
    again = forward / every if checkpointing == "full" else 0.0
    head = config.padded_vocab_size * _head_seconds(config.embed_dim, calibration.heads)
    tokens = micro_batch_size * grad_accum_steps * seq_len
    update = calibration.update_seconds * n_params(config)
    # A table that is not the head has a gradient of its own, which is made in the same way.
    tables = (1 if config.tie_embeddings else 2) * config.padded_vocab_size * config.embed_dim
    once = grad_accum_steps * tables * calibration.table_seconds
    return tokens * ((products + attention) * (1 + again) + head) + once + update


def _head_seconds(width: int, heads: Sequence[HeadTime]) -> float:
    """Of a token for each row; beyond the widest that was measured in proportion to the width."""
    widest = max(piece.width for piece in heads)
    return _between([(piece.width, piece.seconds) for piece in heads], width) * max(1.0, width / widest)


def _is_plain(config: ModelConfig) -> bool:
    """True of a model whose blocks are those that were measured, but for their sizes."""
    own_attention = config.attention_softcap is not None or config.attention_sinks or config.positions == "alibi"
    return config.moe is None and config.latent_attention is None and not own_attention


def _between(points: Sequence[tuple[int, float]], at: int) -> float:
    """On a straight line between the logarithms of the points beside it; beyond the last ones theirs."""
    ordered = sorted(points)
    if at <= ordered[0][0]:
        return ordered[0][1]
    for (low, first), (high, second) in itertools.pairwise(ordered):
        if at <= high:
            share = math.log(at / low) / math.log(high / low)
            return float(first ** (1 - share) * second**share)
    return ordered[-1][1]


def block_products(config: ModelConfig) -> int:
    """Operations of forward and backward of a block for one token, but for its attention."""
    flops = forward_flops(config, BLOCK_LENGTH)
    return 3 * (flops["attention"] + flops["mlp"]) // config.n_layers


def block_attention(config: ModelConfig) -> int:
    """Operations of forward and backward of a block's attention for one token, counted whole."""
    return 3 * attention_flops(config, BLOCK_LENGTH) // config.n_layers
