"""Closed forms against what torch counts and keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from launchyard.model.adapt.attach import attach
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.cost import (
    flops_per_label,
    flops_per_token,
    forward_flops,
    n_params,
    n_params_active,
    n_params_active_non_embedding,
    n_params_embedding,
    n_params_trained,
    params_by_part,
)
from launchyard.model.layout import frozen_names, parameter_shapes, parameters
from launchyard.model.memory import checkpoint_bytes
from launchyard.model.network.transformer import Transformer
from launchyard.model.zoo import preset, presets
from tests.support.tiny_models import CONFIGS, llama, random_model, random_tokens

each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@each_config
def test_layout_and_count_are_those_of_the_module(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == parameter_shapes(config)
    assert n_params(config) == sum(parameter.numel() for parameter in model.parameters())
    assert checkpoint_bytes(config) == 12 * n_params(config)


@each_config
def test_flops_are_those_of_the_matrix_products(config: ModelConfig) -> None:
    """Backward is twice the forward; norms, biases and rotations are all that the closed form counts besides."""
    seq_len = 32
    model, tokens = random_model(config), random_tokens(config, 1, seq_len)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(tokens)
    counted = 3 * counter.get_total_flops() / seq_len
    vectors = sum(shape[0] for shape in parameter_shapes(config).values() if len(shape) == 1)
    assert flops_per_token(config, seq_len) - 6 * vectors == counted
    assert 3 * sum(forward_flops(config, seq_len).values()) == counted


@each_config
def test_a_token_without_a_label_does_not_go_through_the_head(config: ModelConfig) -> None:
    model, tokens = random_model(config), random_tokens(config, 1, 32)

    def counted(labels: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(tokens, at=torch.arange(labels))
        return int(counter.get_total_flops())

    bias = config.padded_vocab_size if config.head_bias else 0
    assert (flops_per_label(config) - 6 * bias) * 24 == 3 * (counted(32) - counted(8))


def test_a_token_goes_through_the_scores_of_each_prompt() -> None:
    config = llama()

    def counted(n_prompt: int, seq_len: int) -> int:
        model = random_model(config)
        attach(model, config, Adapter(kind="llama-adapter", prompt_tokens=n_prompt))
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model.requires_grad_(False)(random_tokens(config, 1, seq_len))
        return int(counter.get_total_flops())

    def foreseen(n_prompt: int) -> int:
        return flops_per_token(config, 16, Adapter(kind="llama-adapter", prompt_tokens=n_prompt))

    more = [counted(n, 32) - counted(n, 16) for n in (1, 5)]
    assert foreseen(5) - foreseen(1) == 3 * (more[1] - more[0]) / 16


def test_the_head_counts_and_a_table_that_is_looked_up_does_not() -> None:
    config = preset("pythia-160m")
    assert n_params(config) - n_params_active_non_embedding(config) == n_params_embedding(config) == 50304 * 768
    tied = preset("llama-3.2-1b")
    assert n_params_active_non_embedding(tied) == n_params(tied)


@each_config
def test_frozen_parameters_have_no_moments_and_are_not_saved(config: ModelConfig) -> None:
    adapter = Adapter(frozen=("embed.*", "blocks.1.attention.*"))
    table = parameters(config, adapter)
    frozen = sum(math.prod(p.shape) for p in table.values() if not p.trained)
    assert {name.split(".")[0] for name, p in table.items() if not p.trained} == {"embed", "blocks"}
    assert frozen_names(config, adapter) == tuple(name for name in table if not table[name].trained)
    assert n_params_trained(config, adapter) == n_params(config) - frozen
    assert n_params_trained(config) == n_params(config)
    assert checkpoint_bytes(config, adapter) == checkpoint_bytes(config) - 12 * frozen


def test_a_pattern_must_match_and_something_must_train() -> None:
    with pytest.raises(ValueError, match=r"no parameter of this model matches block\.0\.\*"):
        parameters(llama(), Adapter(frozen=("block.0.*",)))
    with pytest.raises(ValueError, match="leave no parameter that trains"):
        parameters(llama(), Adapter(frozen=("*",)))


@pytest.mark.parametrize("name", presets())
def test_two_estimates_agree_for_every_preset(name: str) -> None:
    """The products one by one, and PaLM's closed form; parts are the whole."""
    config = preset(name)
    products = 3 * sum(forward_flops(config, 2048).values())
    assert products == pytest.approx(flops_per_token(config, 2048), rel=0.1)
    assert sum(params_by_part(config).values()) == n_params(config)
    assert n_params_active(config) <= n_params(config)


def test_experts_that_a_token_is_not_sent_to_do_not_count() -> None:
    config = preset("qwen3-30b-a3b")
    parts = params_by_part(config)
    assert n_params_active(config) == n_params(config) - parts["experts"] * 120 // 128
    assert n_params_active(config) == pytest.approx(3.3e9, rel=0.02), "A3B"
