"""Closed forms against what torch counts and keeps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from launchyard.model.config import ModelConfig
from launchyard.model.cost import (
    LOGIT_CHUNK_BYTES,
    activation_elements,
    checkpoint_bytes,
    flops_per_token,
    n_params,
    n_params_active_non_embedding,
    n_params_embedding,
    n_params_trained,
    training_memory,
)
from launchyard.model.layout import Adapter, frozen_names, parameter_shapes, parameters
from launchyard.model.network.transformer import Transformer
from launchyard.model.zoo import preset
from tests.support.tiny_models import CONFIGS, llama, neox, random_model, random_tokens

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


def test_the_head_counts_and_a_table_that_is_looked_up_does_not() -> None:
    config = preset("pythia-160m")
    assert n_params(config) - n_params_active_non_embedding(config) == n_params_embedding(config) == 50304 * 768
    tied = preset("llama-3.2-1b")
    assert n_params_active_non_embedding(tied) == n_params(tied)


def kept_bytes(model: Transformer, tokens: Tensor) -> int:
    """Bytes that autograd keeps of the blocks' forward, weights and tables left out, each storage once."""
    ours = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    told = model.places(tokens.shape[1])
    ours |= {table.untyped_storage().data_ptr() for places in told for table in places.turn or ()}
    x = model.embed(tokens)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        for block, places in zip(model.blocks, told, strict=True):
            x = block(x, places.turn, places.mask, places.far)
    return sum(found.values())


@pytest.mark.parametrize(
    "config",
    [
        neox(dim=128, n_layers=4, ffn_dim=512, max_seq_len=256),
        neox(dim=128, n_layers=4, ffn_dim=512, max_seq_len=256, parallel_residual=False),
        llama(dim=128, n_layers=4, ffn_dim=344, max_seq_len=256),
    ],
    ids=["neox", "neox-sequential", "llama"],
)
def test_activations_are_near_what_autograd_keeps(config: ModelConfig) -> None:
    model, tokens = random_model(config), random_tokens(config, 2, 256)
    estimate = 4 * tokens.numel() * config.n_layers * activation_elements(config)
    assert 0.7 < estimate / kept_bytes(model.train(), tokens) < 1.3


@pytest.mark.parametrize(
    "config",
    [
        neox(dim=1024, head_dim=8, n_heads=1, n_kv_heads=1, ffn_dim=8, n_layers=3),
        neox(dim=1024, head_dim=8, n_heads=1, n_kv_heads=1, ffn_dim=8, n_layers=3, parallel_residual=False),
        llama(dim=1024, head_dim=8, n_heads=1, n_kv_heads=1, ffn_dim=8, n_layers=3),
    ],
    ids=["neox", "neox-sequential", "llama"],
)
def test_norms_keep_what_is_counted(config: ModelConfig) -> None:
    """Next to such a wide stream attention and MLP are nothing: all that is kept belongs to the norms."""
    model, tokens = random_model(config), random_tokens(config, 2, 32)
    estimate = 4 * tokens.numel() * config.n_layers * activation_elements(config)
    assert estimate / kept_bytes(model.train(), tokens) == pytest.approx(1, abs=0.1)


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


def memory(**changes: object) -> dict[str, int]:
    options: dict[str, object] = {
        "micro_batch_size": 4, "seq_len": 2048, "shards": 1, "precision": "fp32", "activation_checkpointing": False,
        "device": "cpu",
    }  # fmt: skip
    return training_memory(preset("pythia-1b"), **(options | changes))


def test_memory_goes_where_the_knobs_send_it() -> None:
    plain, count = memory(), n_params(preset("pythia-1b"))
    assert plain["weights"] == plain["gradients"] == 4 * count
    assert plain["optimizer"] == 8 * count
    assert plain["total"] == sum(value for key, value in plain.items() if key != "total")
    cut = memory(shards=8)
    assert cut["optimizer"] == count
    assert cut["activations"] == plain["activations"]
    assert memory(activation_checkpointing=True)["activations"] < plain["activations"] / 5
    assert memory(precision="bf16")["activations"] < 0.55 * plain["activations"]
    assert memory(micro_batch_size=8)["activations"] > 1.9 * plain["activations"]
    more = memory(device="cuda")["activations"] - plain["activations"]
    assert more == pytest.approx(2 * (LOGIT_CHUNK_BYTES["cuda"] - LOGIT_CHUNK_BYTES["cpu"]), rel=0.05)
