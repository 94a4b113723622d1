"""Cost of a model: parameters, floating point operations, bytes. Closed forms of the config. Light; runs nothing."""

from __future__ import annotations

import math
from typing import Literal

from launchyard.model.config import ModelConfig
from launchyard.model.layout import Adapter, block_shapes, parameter_shapes, parameters

FP32_BYTES = 4
BF16_BYTES = 2
# Bytes of fp32 logits that the loss makes at once. On a CPU: as much as its caches hold (softmax over 128 rows of
# 50,304 takes a third of the time per row that it takes over 256); on a GPU: enough rows to fill it.
LOGIT_CHUNK_BYTES = {"cpu": 26 << 20, "cuda": 512 << 20}
_CHUNK_ROWS = 64  # chunks are multiples of this where they can be


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


def checkpoint_bytes(config: ModelConfig, adapter: Adapter | None = None) -> int:
    """Size of a checkpoint: the trained parameters and their two AdamW moments, in fp32."""
    return 3 * FP32_BYTES * n_params_trained(config, adapter)


def logit_rows(vocab_size: int, device: str) -> int:
    """Tokens whose logits the loss makes at once; the estimate of memory counts the same."""
    budget = LOGIT_CHUNK_BYTES.get(device, LOGIT_CHUNK_BYTES["cpu"])
    rows = max(16, budget // (FP32_BYTES * vocab_size))
    return rows // _CHUNK_ROWS * _CHUNK_ROWS or rows


def activation_elements(config: ModelConfig) -> int:
    """Numbers that one block keeps for its backward, a token."""
    heads = config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
    residual = 1 if config.parallel_residual else 2  # inputs of the two norms: one tensor or two
    norms = residual * config.dim + 2 * config.dim
    if config.norm == "rmsnorm":
        norms += 2 * config.dim  # the normalised value before its weight
    attention = heads + 2 * kv + heads  # q, k, v and the output
    mlp = (4 if config.gated_mlp else 2) * config.ffn_dim
    return norms + attention + mlp


def training_memory(
    config: ModelConfig,
    *,
    micro_batch_size: int,
    seq_len: int,
    shards: int,
    precision: Literal["fp32", "bf16"],
    activation_checkpointing: bool,
    device: Literal["cpu", "cuda"],
    adapter: Adapter | None = None,
) -> dict[str, int]:
    """Bytes per worker, an estimate: weights, gradients, optimizer, activations and their total.

    Weights, gradients and moments are fp32 and cut over `shards`, the last two only of trained parameters;
    parameters gathered in full (table, head and final norm for the whole step, and two blocks) count as weights. Not
    counted: the runtime itself (about 0.3 GB, more with CUDA), communication buffers, fragmentation.
    """
    element = BF16_BYTES if precision == "bf16" else FP32_BYTES
    share = math.ceil(n_params(config) / shards)
    trained = math.ceil(n_params_trained(config, adapter) / shards)
    gathered = 0
    if shards > 1 or precision == "bf16":
        blocks = [sum(map(math.prod, block_shapes(config, layer).values())) for layer in range(config.n_layers)]
        outside = n_params(config) - sum(blocks)
        gathered = element * (outside + min(2, config.n_layers) * max(blocks))
    tokens = micro_batch_size * seq_len
    stored_blocks = 1 if activation_checkpointing else config.n_layers
    inputs = config.n_layers * config.dim if activation_checkpointing else 0
    stored = inputs + stored_blocks * activation_elements(config) + 4 * config.dim  # around the final norm and the loss
    rows = min(tokens, logit_rows(config.padded_vocab_size, device))
    logits = 2 * FP32_BYTES * rows * config.padded_vocab_size
    memory = {
        "weights": FP32_BYTES * share + gathered,
        "gradients": FP32_BYTES * trained,
        "optimizer": 2 * FP32_BYTES * trained,
        "activations": element * tokens * stored + logits,
    }
    return memory | {"total": sum(memory.values())}
