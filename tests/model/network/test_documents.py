"""Texts in one row, kept apart: each has the hidden states that it has alone, in every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from launchyard.model.config import ModelConfig
from launchyard.model.network.documents import Documents
from launchyard.model.network.mlp import imbalance, imbalance_of_documents
from launchyard.model.zoo import config_from_hf
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import llama, neox, random_model, random_tokens

LENGTHS = (3, 1, 24, 9)  # 24: past every window
# Windows; sinks; latents; chunks and gains; a table of positions; soft caps; ALiBi; slow turns after 16 positions.
FEW = ("mistral", "gpt-oss", "deepseek-v3", "llama4", "gpt2", "gemma2", "bloom")
DYNAMIC = {"kind": "dynamic", "factor": 2.0, "original_max_seq_len": 16}
OTHERS = {"neox": neox(), "dynamic": llama(max_seq_len=32, rope_scaling=DYNAMIC)}


def config_of(name: str) -> ModelConfig:
    return OTHERS[name] if name in OTHERS else config_from_hf(ARCHITECTURES[name])


def alone(model: Any, tokens: Tensor) -> list[Tensor]:
    return [model(document[None])[0] for document in tokens[0].split(LENGTHS)]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param((*FEW, *OTHERS), id="few"),
        pytest.param(sorted({*ARCHITECTURES} - {*FEW}), marks=pytest.mark.families, id="others"),
    ],
)
@torch.no_grad()
def test_a_document_in_a_row_is_the_document_alone(names: list[str]) -> None:
    documents = Documents(LENGTHS, 64)
    for name in names:
        config = config_of(name)
        model = random_model(config, std=0.1)
        tokens = random_tokens(config, 1, sum(LENGTHS))
        expected = torch.cat(alone(model, tokens))
        found = model(tokens, documents=documents)[0]
        off = float((found - expected).abs().max()) / float(expected.abs().max())
        assert off < 2e-6, f"{name}: off by {off:.1e}"
        at = torch.tensor([0, 3, 20, 36])
        some = model(tokens, documents=documents, at=at)
        assert float((some - expected[at]).abs().max()) / float(expected.abs().max()) < 2e-6, name


@pytest.mark.parametrize("name", ["mistral", "gemma2", "deepseek-v3", "bloom"])
@torch.no_grad()
def test_a_neighbour_changes_no_bit(name: str) -> None:
    config = config_of(name)
    model = random_model(config, std=0.1)
    documents = Documents(LENGTHS, 64)
    tokens = random_tokens(config, 1, sum(LENGTHS))
    before = model(tokens, documents=documents)[0].split(LENGTHS)
    tokens[0, 4:28] = random_tokens(config, 24, seed=1)
    after = model(tokens, documents=documents)[0].split(LENGTHS)
    same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert same == [True, True, False, True]


def test_the_balance_of_documents_is_that_of_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(sum(LENGTHS), 6, generator=generator).softmax(-1)
    chosen = shares.topk(2, dim=-1).indices
    found = imbalance_of_documents(shares, chosen, Documents(LENGTHS, 64))
    parts = zip(LENGTHS, shares.split(LENGTHS), chosen.split(LENGTHS), strict=True)
    assert float(found) == pytest.approx(sum(n / 64 * float(imbalance(s[None], c[None])) for n, s, c in parts))


def test_documents_that_do_not_fill_the_row_are_an_error() -> None:
    config = llama()
    with pytest.raises(ValueError, match=r"\(1, 9\); documents of 7 tokens"):
        random_model(config)(random_tokens(config, 1, 9), documents=Documents((3, 4), 9))
