"""The knobs of a transformer, as plain data. Knows no torch, no file format and no family's history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PAD_VOCAB_MULTIPLE = 128


class RopeScaling(BaseModel):
    """Llama 3's frequency rescaling (Llama 3.1 release, `rope_type: llama3`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float = Field(
        gt=0, description="Factor by which the context becomes longer: low frequencies are divided by it."
    )
    low_freq_factor: float = Field(
        gt=0, description="Wavelengths above original_max_seq_len / this, in tokens, are stretched by all of `factor`."
    )
    high_freq_factor: float = Field(
        gt=0, description="Wavelengths below original_max_seq_len / this stay; between the two the stretch is blended."
    )
    original_max_seq_len: int = Field(gt=0, description="Tokens of context before the stretch.")


class ModelConfig(BaseModel):
    """One decoder-only transformer. Sizes count elements; `head_dim * n_heads` need not equal `dim`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["gpt_neox", "llama", "qwen2"] = Field(
        description="Whose layout its weights have in Hugging Face files; the knobs below decide what is computed."
    )
    dim: int = Field(gt=0, description="Width of the residual stream, in elements per token.")
    n_layers: int = Field(gt=0, description="Blocks, each of attention and MLP.")
    n_heads: int = Field(gt=0, description="Query heads of each block.")
    n_kv_heads: int = Field(
        gt=0, description="Key and value heads, each shared by n_heads / n_kv_heads queries; default: n_heads."
    )
    head_dim: int = Field(gt=0, description="Elements of each head; default: dim / n_heads, where that is whole.")
    ffn_dim: int = Field(gt=0, description="Inner width of the MLP, in elements.")
    vocab_size: int = Field(gt=0, description="Token ids that exist; a recipe's default: as many as the data has.")
    padded_vocab_size: int = Field(
        gt=0,
        description="Rows of the embedding table and the head; default: vocab_size rounded up to a multiple of 128.",
    )
    max_seq_len: int = Field(gt=0, description="Longest sequence, in tokens; more is refused.")
    rope_theta: float = Field(default=10_000.0, gt=0, description="Base of the rotary frequencies; default: 10000.")
    rope_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1.0,
        description="Share of each head that rotates, from its first element on; default: 1, all of it.",
    )
    rope_scaling: RopeScaling | None = Field(
        default=None, description="Stretch of the rotary frequencies for a longer context (Llama 3.1); default: none."
    )
    norm: Literal["layernorm", "rmsnorm"] = Field(
        default="rmsnorm",
        description="Kind of all norms: layernorm has a bias and subtracts the mean; default: rmsnorm.",
    )
    norm_eps: float = Field(
        default=1e-5, gt=0, description="Added to the variance under the root of each norm; default: 1e-5."
    )
    activation: Literal["gelu", "gelu_tanh", "silu"] = Field(
        default="silu", description="Nonlinearity of the MLP; gelu_tanh is its tanh approximation; default: silu."
    )
    gated_mlp: bool = Field(
        default=True, description="Multiply the activation of one projection with a second one (SwiGLU); default: true."
    )
    parallel_residual: bool = Field(
        default=False,
        description="Attention and MLP read the same input instead of one after the other; default: false.",
    )
    attention_bias: bool = Field(
        default=False, description="Biases of the q, k, v and output projections; default: false."
    )
    qkv_bias: bool = Field(
        default=False, description="Biases of the q, k and v projections but not of the output; default: false."
    )
    mlp_bias: bool = Field(default=False, description="Biases of the projections in the MLP; default: false.")
    tie_embeddings: bool = Field(default=False, description="Use the embedding table as the head; default: false.")

    @model_validator(mode="before")
    @classmethod
    def _fill_derived(cls, raw: object) -> object:
        """Derive knobs from others, so that a recipe need not repeat them."""
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        heads = raw.get("n_heads")
        dim = raw.get("dim")
        vocab = raw.get("vocab_size")
        if heads is not None:
            raw.setdefault("n_kv_heads", heads)
        if isinstance(heads, int) and isinstance(dim, int) and heads > 0 and "head_dim" not in raw:
            if dim % heads:
                raise ValueError(f"dim: {dim} is not divisible by n_heads, {heads}; change one, or give head_dim")
            raw["head_dim"] = dim // heads
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


def same_knobs(saved: Mapping[str, object], ours: Mapping[str, object]) -> bool:
    """Equality of two dumped configs. A knob that one of them lacks is younger than it, and has its default there."""
    defaults = {key: field.default for key, field in ModelConfig.model_fields.items() if not field.is_required()}
    return {**defaults, **saved} == {**defaults, **ours}
