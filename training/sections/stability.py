"""Recipe section `stability`: what happens at a step whose loss is no number, or far above those before."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from launchyard.training.sections.section import Section


class StabilityConfig(Section):
    """What to do at a step that would harm the model. While one of both is other than the default, each update waits
    for its loss and norm."""

    on_nonfinite: Literal["fail", "skip", "rewind"] = Field(
        default="fail",
        description="The loss or its gradient is NaN or infinite: end the run, leave out the update, or go back and "
        "pass over the batches up to it.",
    )
    on_spike: Literal["ignore", "skip", "rewind"] = Field(
        default="ignore", description="The loss jumps up: go on, leave out the update, or go back as above."
    )
    spike_factor: float = Field(
        default=6.0,
        gt=0,
        description="A spike lies above the running mean of the loss by this many times its usual distance from it, "
        "and by a tenth of it.",
    )
    spike_window: int = Field(
        default=20, ge=2, description="Steps over which that mean runs; no spike is found in the first ones."
    )
    rewind_steps: int = Field(
        default=10,
        ge=1,
        description="A rewind takes back so many updates, that of the offending step among them, and passes over their "
        "batches.",
    )
    budget: int = Field(
        default=10, ge=1, description="Skips and rewinds in all; the run fails where it would need one more."
    )

    @property
    def reach(self) -> int:
        """Steps by which training may go back; 0: it never does."""
        return self.rewind_steps if "rewind" in (self.on_nonfinite, self.on_spike) else 0

    @property
    def acts(self) -> bool:
        return self.on_nonfinite != "fail" or self.on_spike != "ignore"
