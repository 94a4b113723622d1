"""Recipe sections `train` and `parallel`: how long, how much at once, and how it is divided among workers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from launchyard.training.sections.ramp import Ramp, check_ramp
from launchyard.training.sections.section import Section


class TrainConfig(Section):
    """Length, batch size and precision of training."""

    global_batch_size: int = Field(default=8, ge=1, description="Sequences an optimizer step, over all workers.")
    batch_size_ramp: Ramp = Field(
        default=(),
        description="Smaller batches at first: [[0, size], [from_step, size], …], the last size global_batch_size; "
        "default: none.",
    )
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Sequences a worker puts through one forward; default: its whole share."
    )
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps.")
    max_tokens: int | None = Field(default=None, ge=1, description="Tokens; rounded up to whole steps.")
    max_epochs: float | None = Field(default=None, gt=0, description="Passes over the data; rounded up to whole steps.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 computes in bfloat16 and keeps weights, optimizer and reductions in fp32."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights and of dropout.")
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="Clip the global gradient norm to this.")
    load_balancing_loss: float = Field(
        default=0.0,
        ge=0,
        description="Experts: weight of the load balancing loss, which is taken of each sequence and trained for but "
        "not part of the loss that is shown; such as 0.01; default: 0, none.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: the GPUs asked for, else the CPU."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        chosen = [key for key in ("max_steps", "max_tokens", "max_epochs") if getattr(self, key) is not None]
        if len(chosen) != 1:
            listed = " and ".join(chosen) if chosen else "none of them"
            raise ValueError(f"give exactly one of max_steps, max_tokens, max_epochs; got {listed}")
        return self

    @model_validator(mode="after")
    def _ramp_ends_here(self) -> Self:
        check_ramp(self.batch_size_ramp, "batch_size_ramp", self.global_batch_size, "global_batch_size")
        return self


class ParallelConfig(Section):
    """The division of a model and a batch among the workers."""

    dp_replicate: int = Field(default=1, ge=1, description="Copies of the sharded model (HSDP).")
    dp_shard: int = Field(default=-1, ge=-1, description="Workers that share one copy (FSDP); -1: all that remain.")
    activation_checkpointing: Literal["none", "full"] = Field(
        default="none", description="full: keep only the inputs of each block and compute the rest again."
    )
    compile: bool = Field(default=False, description="torch.compile each block.")
