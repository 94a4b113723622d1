"""The section `adapter` of a recipe: how a model is changed before it trains. Light; knows no tensor and no file."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LOW_RANK = ("lora", "qlora", "dora")
PROMPTED = ("llama-adapter", "llama-adapter-v2")
_TARGETED = (*LOW_RANK, "llama-adapter-v2")
# Keys that would be without effect for other kinds.
_KINDS_OF = {
    "targets": _TARGETED,
    "exclude": _TARGETED,
    "layers": _TARGETED,
    "ranks": LOW_RANK,
    "alphas": LOW_RANK,
    "dropout": LOW_RANK,
    "prompt_tokens": PROMPTED,
    "prompt_layers": PROMPTED,
}


class Adapter(BaseModel):
    """The change to a model before it trains: low-rank updates, prompts in its layers, or some parameters alone.

    Patterns are of our names, such as blocks.0.*; * matches dots.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "lora", "qlora", "dora", "bitfit", "llama-adapter", "llama-adapter-v2"] = Field(
        default="none",
        description="none: every parameter trains; lora: low-rank updates (Hu et al. 2021); qlora: those over a base "
        "in nf4 (Dettmers et al. 2023); dora: with magnitudes (Liu et al. 2024); bitfit: biases alone (Ben Zaken et "
        "al. 2022); llama-adapter: prompts in the last blocks, behind gates that begin at zero (Zhang et al. 2023); "
        "llama-adapter-v2: those, scales and biases of projections, and norms (Gao et al. 2023).",
    )
    r: int = Field(default=8, ge=1, description="Rank of low-rank updates.")
    alpha: float = Field(default=16.0, gt=0, description="Weight of the updates, see scaling.")
    scaling: Literal["alpha/r", "alpha/sqrt(r)", "alpha"] = Field(
        default="alpha/r", description="Factor of the updates; alpha/sqrt(r) is rank-stabilised (Kalajdzievski 2023)."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of the inputs of low-rank updates.")
    targets: str | tuple[str, ...] = Field(
        default="all-linear",
        description="Projections with updates, or with scales and biases: all-linear (all but the head), names "
        "(q_proj, or blocks.3.mlp.up_proj), or one regular expression for whole names.",
    )
    exclude: str | tuple[str, ...] = Field(default=(), description="Targets to leave out, given in the same way.")
    layers: tuple[int, ...] | None = Field(default=None, description="Only in these blocks; default: in all.")
    ranks: dict[str, int] = Field(default={}, description="Other ranks, by name or regular expression of its end.")
    alphas: dict[str, float] = Field(default={}, description="Other alphas, in the same way.")
    prompt_tokens: int = Field(default=10, ge=1, description="Length of the prompt of each block that has one.")
    prompt_layers: int | None = Field(
        default=None, ge=1, description="How many of the last blocks have one; default: all but the first two."
    )
    tokens: tuple[int, ...] = Field(
        default=(), description="Ids of tokens whose rows of the table, and of the head, train beside an adapter."
    )
    trained: tuple[str, ...] = Field(default=(), description="Patterns of parameters that train whole besides.")
    frozen: tuple[str, ...] = Field(default=(), description="Patterns of parameters that do not train.")
    frozen_layers: int = Field(default=0, ge=0, description="Blocks from the first on, and the table, do not train.")
    quantize: Literal["nf4", "nf4-dq", "int8", "fp8"] | None = Field(
        default=None, description="Form of the frozen matrices; -dq: scales quantised too. Default: nf4-dq for qlora."
    )

    @property
    def keeps_base(self) -> bool:
        """True if no parameter of the model itself trains."""
        return self.kind in (*LOW_RANK, "llama-adapter") and not self.trained

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(rank < 1 for rank in self.ranks.values()):
            raise ValueError(f"ranks are {self.ranks}; each must be 1 or more")
        if self.quantize is not None and self.kind not in (*LOW_RANK, *PROMPTED):
            raise ValueError(f"quantize: {self.quantize} is for a frozen base, and with kind {self.kind} it trains")
        if self.tokens and self.kind == "none":
            raise ValueError("tokens: with kind none all rows of the table train; leave tokens out, or name a kind")
        if len(set(self.tokens)) < len(self.tokens) or min(self.tokens, default=0) < 0:
            raise ValueError(f"tokens are {list(self.tokens)}; each is an id of 0 or more, and stands there once")
        for key, kinds in _KINDS_OF.items():
            given = getattr(self, key)
            if self.kind not in kinds and given != type(self).model_fields[key].default:
                raise ValueError(
                    f"{key} is {given}, which kind {self.kind} does not look at; it is for {', '.join(kinds)}"
                )
        return self
