"""Recipe sections `optimizer` and `schedule`. The algorithms are in training/optim/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from launchyard.training.sections.section import Section

OptimizerName = Literal["adamw", "adafactor", "sgd", "lion", "muon", "adamw-8bit", "adamw-schedule-free"]
ScheduleName = Literal["cosine", "linear", "constant", "wsd", "inverse-sqrt", "polynomial"]
# What each optimizer has besides lr, weight_decay and groups, and their values where a recipe gives none.
OPTIMIZER_KEYS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": (0.9, 0.95), "eps": 1e-8},
    "adafactor": {"beta2_decay": -0.8, "low_memory": False},
    "sgd": {"momentum": 0.0, "nesterov": False},
    "lion": {"betas": (0.9, 0.99)},
    "muon": {
        "momentum": 0.95, "nesterov": True, "update_scale": "match-adamw", "betas": (0.9, 0.95), "eps": 1e-8,
    },
    "adamw-8bit": {"betas": (0.9, 0.95), "eps": 1e-8},
    "adamw-schedule-free": {"betas": (0.9, 0.999), "eps": 1e-8},
}  # fmt: skip
# Their values of keys that all have, where they differ from the field's default.
_OTHER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adafactor": {"lr": 1e-2, "weight_decay": 0.0},
    "sgd": {"lr": 1e-2, "weight_decay": 0.0},
    "lion": {"lr": 1e-4},
}
SCHEDULE_KEYS: dict[str, dict[str, Any]] = {
    "wsd": {"decay_share": 0.2, "decay_shape": "linear"},
    "polynomial": {"power": 1.0},
}


class GroupRule(Section):
    """Parameters that are treated otherwise."""

    match: str = Field(min_length=1, description="Pattern of our parameter names, such as `*.norm*` or `embed.weight`.")
    lr_scale: float = Field(default=1.0, ge=0, description="Factor of the learning rate.")
    weight_decay: float | None = Field(
        default=None, ge=0, description="Of all that match; default: as without the rule, matrices alone."
    )


class OptimizerConfig(Section):
    """How gradients become steps; biases, norms and other vectors get no weight decay."""

    name: OptimizerName = Field(
        default="adamw",
        description="adamw (Loshchilov & Hutter 2019), adafactor (Shazeer & Stern 2018), sgd, lion (Chen et al. 2023), "
        "muon (Jordan et al. 2024; AdamW outside the blocks and for vectors), adamw-8bit (Dettmers et al. 2022), "
        "adamw-schedule-free (Defazio et al. 2024).",
    )
    lr: float = Field(
        default=3e-4, gt=0, description="Peak learning rate; default: 0.01 of adafactor and sgd, 0.0001 of lion."
    )
    betas: tuple[float, float] | None = Field(
        default=None,
        description="Decay rates of the two moments; default [0.9, 0.95]; [0.9, 0.99] of lion, [0.9, 0.999] of "
        "adamw-schedule-free.",
    )
    eps: float | None = Field(
        default=None, gt=0, description="adamw and its kin, muon: term added to the denominator; default 1e-8."
    )
    weight_decay: float = Field(
        default=0.1,
        ge=0,
        description="Decay of matrices: decoupled, but of sgd added to the gradient; default: 0 of adafactor and sgd.",
    )
    momentum: float | None = Field(
        default=None, ge=0, lt=1, description="sgd, muon: decay rate of the momentum; default 0 of sgd, 0.95 of muon."
    )
    nesterov: bool | None = Field(default=None, description="sgd, muon: look ahead; default: muon does.")
    beta2_decay: float | None = Field(
        default=None,
        lt=0,
        description="adafactor: the new gradient's share in step t is t to this power; default -0.8.",
    )
    low_memory: bool | None = Field(
        default=None, description="adafactor: compute each update twice instead of keeping all of them; the same steps."
    )
    update_scale: Literal["match-adamw", "original"] | None = Field(
        default=None,
        description="muon: match-adamw (default; Liu et al. 2025) gives updates the size of AdamW's, for its lr; "
        "original scales by the square root of rows over columns.",
    )
    groups: tuple[GroupRule, ...] = Field(
        default=(), description="Rules for parameters by name; the first that matches counts, and each must match one."
    )

    @model_validator(mode="after")
    def _settle(self) -> Self:
        _settle(self, OPTIMIZER_KEYS, _OTHER_DEFAULTS.get(self.name, {}))
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; each must lie in [0, 1)")
        if self.name == "adamw-schedule-free" and self.betas is not None and not self.betas[0]:
            raise ValueError(
                "betas: the first is 0, and adamw-schedule-free computes gradients between two points by it"
            )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: looks ahead by the momentum, which is 0; set momentum, such as 0.9")
        return self


class ScheduleConfig(Section):
    """The learning rate as a pure function of the step."""

    name: ScheduleName = Field(
        default="cosine",
        description="Shape after the warmup. wsd: constant, then a decay at the end; inverse-sqrt: by the square root "
        "of the warmup's steps over all so far; polynomial: the remaining share to a power.",
    )
    by: Literal["steps", "tokens"] = Field(
        default="steps",
        description="What is measured, of the warmup too: steps, or the tokens of all steps so far, which differ while "
        "train.batch_size_ramp grows.",
    )
    warmup_steps: int | float = Field(
        default=0, ge=0, description="Steps of linear warmup, or a share of all steps < 1."
    )
    min_lr: float = Field(default=0.0, ge=0, description="Learning rate at the end; inverse-sqrt: the least.")
    decay_share: float | None = Field(
        default=None, gt=0, le=1, description="wsd: share of all steps in which it decays; default 0.2."
    )
    decay_shape: Literal["linear", "cosine", "sqrt"] | None = Field(
        default=None,
        description="wsd: how it decays; sqrt: by 1 - sqrt(progress) (Hägele et al. 2024); default linear.",
    )
    power: float | None = Field(default=None, gt=0, description="polynomial: of the remaining share; default 1.")

    @field_validator("warmup_steps")
    @classmethod
    def _whole_steps(cls, steps: float) -> float:
        if steps > 1 and steps != int(steps):
            raise ValueError(f"{steps} is neither a whole number of steps nor a share below 1")
        return steps

    @model_validator(mode="after")
    def _settle(self) -> Self:
        _settle(self, SCHEDULE_KEYS, {})
        return self


def _settle(
    section: OptimizerConfig | ScheduleConfig, keys: Mapping[str, Mapping[str, object]], other: Mapping[str, object]
) -> None:
    """Fill in the keys that its name has, and refuse those of other names.

    In place: validators that run before would see JSON's lists, and strict validation wants its own.
    """
    own = keys.get(section.name, {})
    for key in dict.fromkeys(key for of_name in keys.values() for key in of_name):
        if key not in own and getattr(section, key) is not None:
            holders = [name for name, of_name in keys.items() if key in of_name]
            has = f"{section.name} has {', '.join(own)}" if own else f"{section.name} has no keys of its own"
            raise ValueError(f"{key}: a key of {' and '.join(holders)}; {has}")
    vars(section).update({key: value for key, value in own.items() if getattr(section, key) is None})
    vars(section).update({key: value for key, value in other.items() if key not in section.model_fields_set})
