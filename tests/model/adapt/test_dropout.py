"""Dropout of a whole model: where it goes, in every kind of attention, and that a mask is a function of its place."""

from __future__ import annotations

import pytest
import torch

from launchyard.model.adapt.dropout import add_dropout
from launchyard.model.adapt.noise import Moment, Noise
from launchyard.model.config import ModelConfig
from launchyard.model.network.documents import Documents
from launchyard.model.zoo import config_from_hf
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import CONFIGS, random_model, random_tokens

OTHERS = ("gpt-oss", "gemma2", "deepseek-v3", "mistral", "bloom")
KINDS = CONFIGS | {name: config_from_hf(ARCHITECTURES[name]) for name in OTHERS if name in ARCHITECTURES}
NOTHING = 1e-12  # a share of which no draw is a part


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_weights_in_memory_are_those_of_the_kernels(config: ModelConfig) -> None:
    """With dropout attention is computed by hand; where nothing is left out, that changes nothing."""
    model = random_model(config, std=0.1)
    tokens = random_tokens(config, 2, 24)
    documents = Documents((5, 30, 13), 48)
    wanted = model(tokens), model(tokens.view(1, -1), documents=documents)
    moment = Moment(step=1)
    add_dropout(model, NOTHING, moment)
    found = [model(tokens)]
    moment.tokens = (35, 13)
    found.append(model(tokens.view(1, -1), documents=documents))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_each_place_has_a_mask_of_its_own() -> None:
    """Of embeddings, of attention weights, and of what attention and MLP add, in each block."""
    config = CONFIGS["llama"]
    model = random_model(config)
    moment = Moment(seed=3)
    add_dropout(model, 0.5, moment)
    tokens = random_tokens(config, 1, 16)
    plain = model(tokens)
    assert torch.equal(plain, model(tokens)), "without a step nothing is left out"
    seen = [plain]
    for moment.seed, moment.step, moment.first_slot in ((3, 1, 0), (3, 2, 0), (3, 1, 1), (4, 1, 0)):
        seen.append(model(tokens))
        assert torch.equal(seen[-1], model(tokens))
    assert all(not torch.equal(one, other) for n, one in enumerate(seen) for other in seen[:n])


def test_what_stays_makes_up_for_what_is_left_out() -> None:
    noise = Noise("x", 0.25, Moment(step=1))
    ones = torch.ones(2, 64, 128)
    dropped = noise.dropped(ones)
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / 0.75])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    weights = noise.dropped_weights(torch.ones(2, 4, 32, 32), 0)
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.03)
    assert not torch.equal(weights[0], weights[1])
