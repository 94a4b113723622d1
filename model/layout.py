"""Which parameters a config has: our names and whole shapes, in forward order. Light; knows no file format."""

from __future__ import annotations

from collections.abc import Iterator

from launchyard.model.config import ModelConfig

Shape = tuple[int, ...]


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """State-dict name -> shape of every parameter, a tied head left out: it is `embed.weight`."""
    shapes: dict[str, Shape] = {"embed.weight": (config.padded_vocab_size, config.dim)}
    for layer in range(config.n_layers):
        shapes.update((f"blocks.{layer}.{name}", shape) for name, shape in block_shapes(config).items())
    shapes.update(_norm("norm", config))
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.padded_vocab_size, config.dim)
    return shapes


def block_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The same for one block, names without their `blocks.N.`."""
    heads, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    qkv_bias = config.attention_bias or config.qkv_bias
    shapes = dict(_norm("attention_norm", config))
    for name, rows, columns, bias in (
        ("q_proj", heads, config.dim, qkv_bias),
        ("k_proj", kv, config.dim, qkv_bias),
        ("v_proj", kv, config.dim, qkv_bias),
        ("o_proj", config.dim, heads, config.attention_bias),
    ):
        shapes.update(_linear(f"attention.{name}", rows, columns, bias=bias))
    shapes.update(_norm("mlp_norm", config))
    if config.gated_mlp:
        shapes.update(_linear("mlp.gate_proj", config.ffn_dim, config.dim, bias=config.mlp_bias))
    shapes.update(_linear("mlp.up_proj", config.ffn_dim, config.dim, bias=config.mlp_bias))
    shapes.update(_linear("mlp.down_proj", config.dim, config.ffn_dim, bias=config.mlp_bias))
    return shapes


def _norm(name: str, config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (config.dim,)
    if config.norm == "layernorm":
        yield f"{name}.bias", (config.dim,)


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
