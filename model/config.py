"""The knobs of a transformer, as plain data. Knows no torch, no file format and no family's history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PAD_VOCAB_MULTIPLE = 128


class RopeScaling(BaseModel):
    """Stretch of the rotary frequencies for a longer context. Lengths in tokens; see model/network/rope.py."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["llama3", "linear", "dynamic", "yarn", "longrope"] = Field(
        default="llama3", description="Rule of the stretch, by transformers' name of it; default: llama3."
    )
    factor: float = Field(
        default=1.0, gt=0, description="Factor by which the context becomes longer; default: 1, or as the rule has it."
    )
    original_max_seq_len: int | None = Field(default=None, gt=0, description="Tokens of context before the stretch.")
    low_freq_factor: float | None = Field(
        default=None,
        gt=0,
        description="llama3: wavelengths above original_max_seq_len / this, in tokens, stretch by all of `factor`.",
    )
    high_freq_factor: float | None = Field(
        default=None,
        gt=0,
        description="llama3: wavelengths below original_max_seq_len / this stay; between the two a blend.",
    )
    beta_fast: float = Field(
        default=32.0, gt=0, description="yarn: dimensions that turn more often than this within the old context stay."
    )
    beta_slow: float = Field(
        default=1.0,
        gt=0,
        description="yarn: dimensions that turn less often than this stretch by all of `factor`.",
    )
    truncate: bool = Field(default=True, description="yarn: the blend begins and ends at whole dimensions.")
    attention_factor: float | None = Field(
        default=None, gt=0, description="yarn, longrope: multiplies cosines and sines; default: as the rule has it."
    )
    mscale: float | None = Field(default=None, description="yarn: DeepSeek's weight of the multiplier above.")
    mscale_all_dim: float | None = Field(
        default=None, description="yarn: DeepSeek's weight of the multiplier of the attention's scale."
    )
    short_factor: tuple[float, ...] = Field(
        default=(), description="longrope: divides each frequency while a sequence fits the old context."
    )
    long_factor: tuple[float, ...] = Field(default=(), description="longrope: divides each frequency beyond it.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        needed = {
            "llama3": ("factor", "original_max_seq_len", "low_freq_factor", "high_freq_factor"),
            "yarn": ("factor", "original_max_seq_len"),
            "longrope": ("original_max_seq_len", "short_factor", "long_factor"),
            "dynamic": ("factor", "original_max_seq_len"),
            "linear": ("factor",),
        }[self.kind]
        missing = [key for key in needed if not getattr(self, key)]
        if missing:
            raise ValueError(f"a rope_scaling of kind {self.kind} needs {' and '.join(missing)}")
        return self


class MoE(BaseModel):
    """Experts in the place of an MLP: a router sends each token to a few of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_experts: int = Field(gt=0, description="Experts of a layer.")
    top_k: int = Field(gt=0, description="Experts that each token is sent to.")
    ffn_dim: int = Field(gt=0, description="Inner width of an expert, in elements.")
    score: Literal["softmax", "sigmoid", "near_softmax"] = Field(
        default="softmax",
        description="Function that makes a router's outputs scores; near_softmax: of each expert in turn, among those "
        "of the rest that are near it (SparseMixer); default: softmax.",
    )
    nearness: float = Field(
        default=0.01, gt=0, description="near_softmax: half the distance, as a share, up to which outputs are near."
    )
    wide_router: bool = Field(
        default=False, description="The router computes in fp32, whatever the type of its weights; default: false."
    )
    score_after_choice: bool = Field(
        default=False, description="Softmax over the chosen experts rather than over all; default: false."
    )
    normalize: bool = Field(default=False, description="Scores of the chosen experts sum to one; default: false.")
    scale: float = Field(default=1.0, gt=0, description="Multiplies the scores; default: 1.")
    choice_bias: bool = Field(
        default=False, description="A bias of each expert that counts for its choice alone; default: false."
    )
    bias: bool = Field(default=False, description="Biases of the router and of the experts; default: false.")
    n_groups: int = Field(default=1, gt=0, description="Groups of experts, of which some are chosen first; default: 1.")
    top_groups: int = Field(default=1, gt=0, description="Groups that each token chooses from; default: 1.")
    group_score: Literal["max", "top2"] = Field(
        default="max", description="Score of a group: its best expert's, or the sum of its best two; default: max."
    )
    shared_ffn_dim: int = Field(
        default=0, ge=0, description="Inner width of an expert that every token goes through; default: 0, none."
    )
    shared_gate: bool = Field(
        default=False, description="The shared expert is multiplied by a gate of its own; default: false."
    )
    scale_input: bool = Field(
        default=False, description="A score multiplies the expert's input and not its output; default: false."
    )
    first_layer: int = Field(default=0, ge=0, description="Layers before this one have an MLP; default: 0.")
    every: int = Field(default=1, gt=0, description="Only every n-th layer has experts; default: 1.")
    dense_layers: tuple[int, ...] = Field(default=(), description="More layers with an MLP; default: none.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.top_k > self.n_experts:
            raise ValueError(f"top_k ({self.top_k}) must be at most n_experts ({self.n_experts})")
        if self.n_experts % self.n_groups:
            raise ValueError(f"n_experts ({self.n_experts}) must be a multiple of n_groups ({self.n_groups})")
        if self.top_groups > self.n_groups:
            raise ValueError(f"top_groups ({self.top_groups}) must be at most n_groups ({self.n_groups})")
        return self

    def is_in(self, layer: int) -> bool:
        """True for a layer that has experts."""
        return layer >= self.first_layer and (layer + 1) % self.every == 0 and layer not in self.dense_layers


class LatentAttention(BaseModel):
    """Keys and values out of a short vector a token (DeepSeek-V2); sizes in elements."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    q_rank: int | None = Field(default=None, gt=0, description="Width between the two q projections; default: one.")
    kv_rank: int = Field(gt=0, description="Width of the vector that keys and values are made of.")
    nope_dim: int = Field(gt=0, description="Part of each query and key head that does not rotate.")
    rope_dim: int = Field(gt=0, description="Part of each query head that rotates, with one key for all heads.")
    v_dim: int = Field(gt=0, description="Elements of each value head.")


class ModelConfig(BaseModel):
    """One decoder-only transformer. Sizes count elements; `head_dim * n_heads` need not equal `dim`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str = Field(
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
    max_seq_len: int = Field(
        gt=0,
        description="Longest sequence, in tokens; more is refused where positions are rotated or learned.",
    )
    layers: tuple[Literal["full", "window", "chunk"], ...] = Field(
        default=("full",),
        min_length=1,
        description="What the attention of each layer sees, repeated over the depth: all before it, the last `window` "
        "tokens, or those of its chunk of `window` tokens; default: full.",
    )
    window: int | None = Field(default=None, gt=0, description="Tokens of a window or a chunk; default: none.")
    positions: Literal["rope", "learned", "alibi", "none"] = Field(
        default="rope",
        description="What tells where a token stands: rotations, a table, distances (ALiBi) or nothing; default: rope.",
    )
    learned_offset: int = Field(
        default=0, ge=0, description="Rows of the table of positions before the first position; default: 0."
    )
    alibi_scale: float | None = Field(default=None, gt=0, description="Multiplies ALiBi's distances; default: 1.")
    alibi_bf16: bool = Field(
        default=False, description="ALiBi's slopes, positions and products are rounded to bf16; default: false."
    )
    rope_layers: tuple[bool, ...] = Field(
        default=(True,), min_length=1, description="Layers that rotate, repeated over the depth; default: true, all."
    )
    rope_theta: float = Field(default=10_000.0, gt=0, description="Base of the rotary frequencies; default: 10000.")
    rope_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1.0,
        description="Share of each head that rotates, from its first element on; default: 1, all of it.",
    )
    rope_scaling: RopeScaling | None = Field(
        default=None, description="Stretch of the rotary frequencies for a longer context; default: none."
    )
    window_rope_theta: float | None = Field(
        default=None,
        gt=0,
        description="Base of the frequencies of layers that see a window, without a stretch; default: as all layers.",
    )
    norm: Literal["layernorm", "rmsnorm"] = Field(
        default="rmsnorm",
        description="Kind of all norms: layernorm has a bias and subtracts the mean; default: rmsnorm.",
    )
    norm_weight: Literal["plain", "plus_one", "none"] = Field(
        default="plain",
        description="What norms multiply by: their weight, 1 + it, or nothing; default: plain.",
    )
    norm_bias: bool = Field(
        default=False, description="A bias after each norm; default: true with layernorm, if it has a weight."
    )
    norm_eps: float = Field(
        default=1e-5, gt=0, description="Added to the variance under the root of each norm; default: 1e-5."
    )
    norm_place: Literal["pre", "post", "sandwich", "sum"] = Field(
        default="pre",
        description="Norms before attention and MLP; post: behind them, before the sum; sandwich: both; sum: behind "
        "the sum, and none before the head; default: pre.",
    )
    qk_norm: Literal["head", "width", "each", "unit"] | None = Field(
        default=None,
        description="Norm of queries and keys: of each head, of all heads together, of each head with a weight of its "
        "own, or of each rotated head without a weight; default: none.",
    )
    parallel_residual: bool = Field(
        default=False,
        description="Attention and MLP read the same input instead of one after the other; default: false.",
    )
    shared_norm: bool = Field(
        default=False, description="One norm before both of a parallel residual; default: false, two."
    )
    attention_bias: bool = Field(
        default=False, description="Biases of the q, k, v and output projections; default: false."
    )
    qkv_bias: bool = Field(
        default=False, description="Biases of the q, k and v projections but not of the output; default: false."
    )
    attention_scale: float | None = Field(
        default=None, gt=0, description="Multiplies queries times keys; default: 1 / sqrt(head_dim)."
    )
    attention_softcap: float | None = Field(
        default=None, gt=0, description="Bounds those products by c tanh(x / c); default: none."
    )
    attention_sinks: bool = Field(
        default=False, description="A learned logit of each head takes part in its softmax; default: false."
    )
    qkv_clip: float | None = Field(default=None, gt=0, description="Bounds q, k and v; default: none.")
    latent_attention: LatentAttention | None = Field(
        default=None, description="Keys and values out of a short vector a token; default: none."
    )
    far_scale: float | None = Field(
        default=None,
        gt=0,
        description="Queries of layers without rotation grow by this times the logarithm of 1 + the number of "
        "far_steps before them (Llama 4); default: none.",
    )
    far_step: int = Field(default=8192, gt=0, description="Tokens of such a step; default: 8192.")
    activation: Literal["gelu", "gelu_tanh", "silu", "relu", "relu2", "clamped_swish"] = Field(
        default="silu",
        description="Nonlinearity of the MLP: gelu_tanh is its tanh approximation, relu2 the square of relu, "
        "clamped_swish gpt-oss's; default: silu.",
    )
    gated_mlp: bool = Field(
        default=True, description="Multiply the activation of one projection with a second one (SwiGLU); default: true."
    )
    mlp_bias: bool = Field(default=False, description="Biases of the projections in the MLP; default: false.")
    moe: MoE | None = Field(default=None, description="Experts in the place of the MLP; default: none.")
    embed_norm: bool = Field(default=False, description="A norm behind the embedding table; default: false.")
    embed_scale: float | None = Field(default=None, gt=0, description="Multiplies the embeddings; default: 1.")
    residual_scale: float | None = Field(
        default=None, gt=0, description="Multiplies what attention and MLP add to the stream; default: 1."
    )
    logit_scale: float | None = Field(default=None, gt=0, description="Multiplies the logits; default: 1.")
    logit_softcap: float | None = Field(
        default=None, gt=0, description="Bounds the logits by c tanh(x / c); default: none."
    )
    embed_proj_dim: int | None = Field(
        default=None,
        gt=0,
        description="Width of the table of embeddings and of the head, with a projection from it to dim and one back; "
        "default: dim, and no projections.",
    )
    head_bias: bool = Field(default=False, description="A bias of the head; default: false.")
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
        if raw.get("norm") == "layernorm" and raw.get("norm_weight", "plain") != "none":
            raw.setdefault("norm_bias", True)
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
        if self.rotates_anywhere and (self.rope_dim < 2 or self.rope_dim % 2):
            raise ValueError(
                f"rope_fraction {self.rope_fraction} of head_dim {self.head_dim} is {self.rope_dim} rotated "
                "dimensions; it must be an even number of at least 2"
            )
        if self.window is None and self.layers != ("full",):
            raise ValueError(f"layers that see {' and '.join(sorted({*self.layers} - {'full'}))} need a window")
        if self.shared_norm and not self.parallel_residual:
            raise ValueError("shared_norm is for a parallel residual; set parallel_residual too")
        if self.moe is not None and (self.dim % 8 or self.moe.ffn_dim % 8):
            raise ValueError(
                f"with experts dim ({self.dim}) and moe.ffn_dim ({self.moe.ffn_dim}) must be multiples of 8: torch's "
                "grouped product reads 16 bytes at once"
            )
        if self.parallel_residual and self.norm_place != "pre":
            raise ValueError(f"a parallel residual has its norms before it; norm_place is {self.norm_place}")
        return self

    @property
    def embed_dim(self) -> int:
        """Width of the table of embeddings and of the head."""
        return self.embed_proj_dim or self.dim

    @property
    def has_final_norm(self) -> bool:
        """False where the last block ends with one."""
        return self.norm_place != "sum"

    @property
    def rope_dim(self) -> int:
        """Dimensions of each query head that rotate."""
        if self.latent_attention is not None:
            return self.latent_attention.rope_dim
        return int(self.head_dim * self.rope_fraction)

    @property
    def rotates_anywhere(self) -> bool:
        """True if a layer rotates its queries and keys."""
        return self.positions == "rope" and any(self.rope_layers)

    @property
    def rotates_over_all(self) -> bool:
        """True if a layer that rotates sees all that is before it, so that distances grow with the sequence."""
        return any(self.rotates(layer) and self.sees(layer) == "full" for layer in range(self.n_layers))

    @property
    def position_limit(self) -> int | None:
        """Positions that there are; None where nothing tells a token its position, or only distances do."""
        return self.max_seq_len if self.rotates_anywhere or self.positions == "learned" else None

    @property
    def alibi_heads(self) -> tuple[range, int]:
        """The heads that these are, and of how many: all of them, but in a share of a model."""
        return range(self.n_heads), self.n_heads

    def sees(self, layer: int) -> Literal["full", "window", "chunk"]:
        """What the attention of a layer sees."""
        return self.layers[layer % len(self.layers)]

    def rotates(self, layer: int) -> bool:
        return self.positions == "rope" and self.rope_layers[layer % len(self.rope_layers)]

    def has_experts(self, layer: int) -> bool:
        return self.moe is not None and self.moe.is_in(layer)


def same_knobs(saved: Mapping[str, object], ours: Mapping[str, object]) -> bool:
    """Equality of two dumped configs. A knob that one of them lacks is younger than it, and has its default there."""
    return _with_defaults(ModelConfig, saved) == _with_defaults(ModelConfig, ours)


_GROUPS: dict[str, type[BaseModel]] = {"rope_scaling": RopeScaling, "moe": MoE, "latent_attention": LatentAttention}


def _with_defaults(kind: type[BaseModel], knobs: Mapping[str, object]) -> dict[str, object]:
    filled = {key: field.default for key, field in kind.model_fields.items() if not field.is_required()}
    if kind is ModelConfig and "norm_bias" not in knobs:
        filled["norm_bias"] = knobs.get("norm") == "layernorm"
    for key, value in knobs.items():
        group = _GROUPS.get(key)
        filled[key] = _with_defaults(group, value) if group is not None and isinstance(value, Mapping) else value
    return {key: list(value) if isinstance(value, tuple) else value for key, value in filled.items()}
