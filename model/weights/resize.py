"""The rows of a table of the vocabulary in a longer or shorter one. Knows no file."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 4096  # rows that are summed at once


def is_of_vocabulary(key: str) -> bool:
    """True for a parameter that has a row for each id."""
    return key in ("embed.weight", "lm_head.weight", "lm_head.bias")


def mean_row(table: Tensor, n_tokens: int) -> Tensor:
    """The mean of the first n_tokens rows, those that stand for a token: what a new row begins as.

    A row near zero would be the likeliest token of all, since those of a trained head say no to most texts; with the
    mean a new token begins as an average one (Hewitt 2021, Initializing New Word Embeddings for Pretrained Language
    Models).
    """
    total = torch.zeros(table.shape[1:], dtype=torch.float64)
    for part in table[:n_tokens].split(_CHUNK):
        total += part.double().sum(0)
    return (total / n_tokens).to(table.dtype)
