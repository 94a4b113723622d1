"""The knobs of a transformer, as plain data. Knows no torch, no file format and no family's history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PAD_VOCAB_MULTIPLE = 128


class RopeScaling(BaseModel):
    """Llama 3's frequency rescaling (Llama 3.1 release, `rope_type: llama3`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float = Field(gt=0)
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_max_seq_len: int = Field(gt=0)


class ModelConfig(BaseModel):
    """One decoder-only transformer. Sizes count elements; `head_dim * n_heads` need not equal `dim`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["gpt_neox", "llama", "qwen2"]
    dim: int = Field(gt=0)
    n_layers: int = Field(gt=0)
    n_heads: int = Field(gt=0)
    n_kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    ffn_dim: int = Field(gt=0)
    vocab_size: int = Field(gt=0)
    padded_vocab_size: int = Field(gt=0)
    max_seq_len: int = Field(gt=0)
    rope_theta: float = Field(default=10_000.0, gt=0)
    rope_fraction: float = Field(default=1.0, gt=0, le=1.0)
    rope_scaling: RopeScaling | None = None
    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_eps: float = Field(default=1e-5, gt=0)
    activation: Literal["gelu", "gelu_tanh", "silu"] = "silu"
    gated_mlp: bool = True
    parallel_residual: bool = False
    attention_bias: bool = False  # on q, k, v and o
    qkv_bias: bool = False  # on q, k and v, but not on o
    mlp_bias: bool = False
    tie_embeddings: bool = False

    @model_validator(mode="before")
    @classmethod
    def _fill_derived(cls, raw: Any) -> Any:
        """Derive what follows from the other knobs, so that a recipe need not repeat it."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        heads, dim, vocab = raw.get("n_heads"), raw.get("dim"), raw.get("vocab_size")
        if heads is not None:
            raw.setdefault("n_kv_heads", heads)
        if isinstance(heads, int) and isinstance(dim, int) and heads > 0 and dim % heads == 0:
            raw.setdefault("head_dim", dim // heads)
        if isinstance(vocab, int):
            raw.setdefault("padded_vocab_size", -(-vocab // PAD_VOCAB_MULTIPLE) * PAD_VOCAB_MULTIPLE)
        return raw

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.padded_vocab_size < self.vocab_size:
            raise ValueError(
                f"padded_vocab_size ({self.padded_vocab_size}) must be at least vocab_size ({self.vocab_size})"
            )
        if self.qkv_bias and self.attention_bias:
            raise ValueError("qkv_bias is a bias on q, k and v alone, attention_bias one on q, k, v and o; set one")
        if self.rope_dim < 2 or self.rope_dim % 2:
            raise ValueError(
                f"rope_fraction {self.rope_fraction} of head_dim {self.head_dim} is {self.rope_dim} rotated "
                "dimensions; it must be an even number of at least 2"
            )
        return self

    @property
    def rope_dim(self) -> int:
        """Dimensions of each head that rotate."""
        return int(self.head_dim * self.rope_fraction)


def same_knobs(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Equality of two dumped configs. A knob that one of them lacks is younger than it, and has its default there."""
    defaults = {key: field.default for key, field in ModelConfig.model_fields.items() if not field.is_required()}
    return {**defaults, **saved} == {**defaults, **ours}
