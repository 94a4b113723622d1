"""The parameters of a config, trained or frozen: our names and full shapes, in forward order.

The only source of that list: first weights, optimizer, checkpoints and costs follow it. Light; knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field

from launchyard.model.config import ModelConfig

TensorShape = tuple[int, ...]


class Adapter(BaseModel):
    """Changes to a model before it trains; for now, the set of its frozen parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frozen: tuple[str, ...] = Field(default=(), description="Patterns of names, such as blocks.0.*; * matches dots.")


@dataclass(frozen=True)
class Parameter:
    """A frozen one has no gradient and no moments, and is not saved: it keeps its first value."""

    shape: TensorShape
    trained: bool = True


def parameters(config: ModelConfig, adapter: Adapter | None = None) -> dict[str, Parameter]:
    """State-dict name -> shape, and whether it trains, of every parameter.

    A tied head is left out: it is `embed.weight`. ValueError for a pattern that no name matches, and if none is left.
    """
    patterns = adapter.frozen if adapter is not None else ()
    shapes = parameter_shapes(config)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in shapes):
            names = ", ".join(list(shapes)[:4])
            raise ValueError(f"frozen: no parameter of this model matches {pattern}; its names are {names}, …")
    found = {
        name: Parameter(shape, not any(fnmatchcase(name, pattern) for pattern in patterns))
        for name, shape in shapes.items()
    }
    if not any(parameter.trained for parameter in found.values()):
        raise ValueError(f"frozen: {', '.join(patterns)} leave no parameter that trains; freeze fewer")
    return found


def frozen_names(config: ModelConfig, adapter: Adapter | None) -> tuple[str, ...]:
    return tuple(name for name, parameter in parameters(config, adapter).items() if not parameter.trained)


def parameter_shapes(config: ModelConfig) -> dict[str, TensorShape]:
    """The names and shapes alone, for uses other than training."""
    shapes: dict[str, TensorShape] = {"embed.weight": (config.padded_vocab_size, config.dim)}
    for layer in range(config.n_layers):
        shapes.update((f"blocks.{layer}.{name}", shape) for name, shape in block_shapes(config).items())
    shapes.update(_norm("norm", config))
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.padded_vocab_size, config.dim)
    return shapes


def block_shapes(config: ModelConfig) -> dict[str, TensorShape]:
    """The same for one block, names without their `blocks.N.`."""
    heads = config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
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


def _norm(name: str, config: ModelConfig) -> Iterator[tuple[str, TensorShape]]:
    yield f"{name}.weight", (config.dim,)
    if config.norm == "layernorm":
        yield f"{name}.bias", (config.dim,)


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> Iterator[tuple[str, TensorShape]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
