"""Cost of a model: parameters and floating point operations. Closed forms of the config. Light; runs nothing."""

from __future__ import annotations

import math

from launchyard.model.adapt.targets import prompted
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape, adapter_shapes, parameter_shapes, parameters


def n_params(config: ModelConfig) -> int:
    """All parameters; a tied table counts once."""
    return sum(map(math.prod, parameter_shapes(config).values()))


def n_params_trained(config: ModelConfig, adapter: Adapter | None = None) -> int:
    """Parameters that training changes; see model/layout.py."""
    found = parameters(config, adapter).values()
    return sum(math.prod(parameter.shape) for parameter in found if parameter.trained)


def n_params_embedding(config: ModelConfig) -> int:
    """Parameters of the input table, its padding included."""
    return config.padded_vocab_size * config.embed_dim


def n_params_active_non_embedding(config: ModelConfig) -> int:
    """Parameters that take part in each token's arithmetic: all but tables that only serve lookups, and idle experts.

    The head is a matrix product, so it counts; tied to the table, the table counts as the head.
    """
    return sum(_active(config, name, shape) for name, shape in parameter_shapes(config).items())


def _active(config: ModelConfig, name: str, shape: TensorShape) -> int:
    """Elements of a parameter that a token's arithmetic goes through."""
    if name == "positions.weight" or (name == "embed.weight" and not config.tie_embeddings):
        return 0
    if name.endswith((".prompt", ".gate")):  # a token sees its keys and values: attention_flops
        return 0
    size = math.prod(shape)
    return size * config.moe.top_k // config.moe.n_experts if config.moe is not None and ".experts." in name else size


def flops_per_token(config: ModelConfig, seq_len: int, adapter: Adapter | None = None) -> int:
    """Operations of one training step for one token: 6 N + 12 L d s (PaLM, Chowdhery et al. 2022, appendix B).

    N as in `n_params_active_non_embedding`, L layers, d = n_heads * head_dim, s = seq_len or the window of a layer;
    of frozen parameters 4 N, as no gradient of them is made. Attention is counted whole, as is usual; a causal kernel
    does half of it. Recomputed activations do not count.
    """
    products = sum(_product_flops(config, adapter).values())
    return products + 3 * attention_flops(config, seq_len, adapter)


def causal_flops_per_token(config: ModelConfig, seq_len: int, adapter: Adapter | None = None) -> int:
    """Those of `flops_per_token` with half of the attention: a token sees those before it alone."""
    return flops_per_token(config, seq_len, adapter) - 3 * attention_flops(config, seq_len, adapter) // 2


def flops_per_label(config: ModelConfig, adapter: Adapter | None = None) -> int:
    """Those of `flops_per_token` that a token without a label does not take: the head's, see Transformer.forward."""
    products = _product_flops(config, adapter).items()
    table = "embed.weight" if config.tie_embeddings else None
    return sum(flops for name, flops in products if name == table or part_of(name) == "head")


def _product_flops(config: ModelConfig, adapter: Adapter | None) -> dict[str, int]:
    """Of a training step for one token, by parameter: 4 for each element, 6 where a gradient of it is made."""
    shapes = parameter_shapes(config) | adapter_shapes(config, adapter or Adapter())
    trained = {name for name, parameter in parameters(config, adapter).items() if parameter.trained}
    return {name: (6 if name in trained else 4) * _active(config, name, shape) for name, shape in shapes.items()}


def forward_flops(config: ModelConfig, seq_len: int) -> dict[str, int]:
    """Operations of the forward for one token, by part: two for each element of a matrix that the token goes through.

    `scores` are the products of queries, keys and values, counted whole. Norms, biases and activations do not count.
    The backward takes twice as many, but of tied or frozen tables.
    """
    found = {"attention": 0, "scores": attention_flops(config, seq_len), "mlp": 0, "head": 0}
    for name, shape in parameter_shapes(config).items():
        part = "head" if name == "embed.weight" and config.tie_embeddings else part_of(name)
        if len(shape) == 1 or part in ("embedding", "norms"):
            continue
        size = math.prod(shape)
        if part == "experts" and config.moe is not None:
            size = math.prod(shape[1:]) * config.moe.top_k if name.endswith("weight") else 0
        found["mlp" if part == "experts" else part] += 2 * size
    return found


def attention_flops(config: ModelConfig, seq_len: int, adapter: Adapter | None = None) -> int:
    """Operations of the forward for one token in the products of queries, keys and values, counted whole."""
    latent = config.latent_attention
    keys = config.head_dim if latent is None else latent.nope_dim + latent.rope_dim
    values = config.head_dim if latent is None else latent.v_dim
    seen = sum(
        seq_len if config.sees(layer) == "full" else min(seq_len, config.window or seq_len)
        for layer in range(config.n_layers)
    )
    if adapter is not None:
        seen += len(prompted(config.n_layers, adapter)) * adapter.prompt_tokens
    return 2 * config.n_heads * (keys + values) * seen


def part_of(name: str) -> str:
    """The part of a model that a parameter belongs to: embedding, attention, mlp, experts, norms or head."""
    if name in ("embed.weight", "positions.weight"):
        return "embedding"
    if name.startswith(("lm_head.", "head_proj.")):
        return "head"
    if name.split(".")[-2].endswith("norm"):
        return "norms"
    if ".attention." in name:
        return "attention"
    return "experts" if ".experts." in name else "mlp" if ".mlp." in name else "head"


def params_by_part(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part. The head is 0 where it is the table; a router and a shared expert are of the mlp."""
    found = dict.fromkeys(("embedding", "attention", "mlp", "experts", "norms", "head"), 0)
    for name, shape in parameter_shapes(config).items():
        found[part_of(name)] += math.prod(shape)
    return found


def n_params_active(config: ModelConfig) -> int:
    """Parameters that a token meets: all but the experts that it is not sent to."""
    experts = params_by_part(config)["experts"]
    if config.moe is None:
        return n_params(config)
    return n_params(config) - experts + experts * config.moe.top_k // config.moe.n_experts


CHINCHILLA = 20  # tokens for each parameter, of Hoffmann et al. 2022


def chinchilla_tokens(config: ModelConfig) -> int:
    """Tokens at which a model of this size is the best for its compute (Hoffmann et al. 2022): 20 a parameter."""
    return CHINCHILLA * n_params(config)


def training_seconds(flops: float, *, peak: float, mfu: float, n_devices: int) -> float:
    """Of so many operations on devices of a peak each, at a model FLOPs utilisation."""
    return flops / (peak * mfu * n_devices)
