"""Recipe section `preference`: how pairs of answers are trained for."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from launchyard.training.sections.section import Section


class PreferenceConfig(Section):
    """The loss of `data.kind: preference`. Default: DPO.

    dpo (Rafailov et al. 2023): the chosen answer is to become likelier, beside the rejected one, than it was at the
    start. simpo (Meng et al. 2024): likelier a token than the rejected one, without a look back.
    """

    loss: Literal["dpo", "simpo"] = Field(
        default="dpo", description="dpo needs adapter.kind lora, qlora, dora or llama-adapter."
    )
    beta: float | None = Field(
        default=None, gt=0, description="Weight of log-probabilities in rewards; default: 0.1, of simpo 2."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs that are taken to be the wrong way round."
    )
    target_margin: float | None = Field(
        default=None, ge=0, description="simpo: by how much the better reward is to be higher; default: 1."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loss == "dpo" and self.target_margin is not None:
            raise ValueError("target_margin is for loss simpo; dpo has none")
        return self
