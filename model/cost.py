"""Cost of a model: parameters and floating point operations. Closed forms of the config. Light; runs nothing."""

from __future__ import annotations

import math

from launchyard.model.config import ModelConfig
from launchyard.model.layout import Adapter, parameter_shapes, parameters


def n_params(config: ModelConfig) -> int:
    """All parameters; a tied table counts once."""
    return sum(map(math.prod, parameter_shapes(config).values()))


def n_params_trained(config: ModelConfig, adapter: Adapter | None = None) -> int:
    """Parameters that training changes; see model/layout.py."""
    found = parameters(config, adapter).values()
    return sum(math.prod(parameter.shape) for parameter in found if parameter.trained)


def n_params_embedding(config: ModelConfig) -> int:
    """Parameters of the input table, its padding included."""
    return config.padded_vocab_size * config.dim


def n_params_active_non_embedding(config: ModelConfig) -> int:
    """Parameters that take part in each token's arithmetic: all but tables that only serve lookups, and idle experts.

    The head is a matrix product, so it counts; tied to the table, the table counts as the head.
    """
    total = 0
    for name, shape in parameter_shapes(config).items():
        if name == "positions.weight" or (name == "embed.weight" and not config.tie_embeddings):
            continue
        size = math.prod(shape)
        if config.moe is not None and ".experts." in name:
            size = size * config.moe.top_k // config.moe.n_experts
        total += size
    return total


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Operations of one training step for one token: 6 N + 12 L d s (PaLM, Chowdhery et al. 2022, appendix B).

    N as in `n_params_active_non_embedding`, L layers, d = n_heads * head_dim, s = seq_len or the window of a layer.
    Attention is counted whole, as is usual; a causal kernel does half of it. Recomputed activations do not count.
    """
    latent = config.latent_attention
    keys = config.head_dim if latent is None else latent.nope_dim + latent.rope_dim
    values = config.head_dim if latent is None else latent.v_dim
    seen = sum(
        seq_len if config.sees(layer) == "full" else min(seq_len, config.window or seq_len)
        for layer in range(config.n_layers)
    )
    return 6 * n_params_active_non_embedding(config) + 6 * config.n_heads * (keys + values) * seen
