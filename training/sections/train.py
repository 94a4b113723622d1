"""Recipe sections `train` and `parallel`: how long, how much at once, and how it is divided among workers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from launchyard.model.precision import Precision, canonical
from launchyard.training.sections.duration import seconds_of
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
    max_time: str | None = Field(
        default=None,
        description="End after so much training, over all attempts, even if steps are left; [D-]HH:MM:SS or minutes. "
        "The schedule stays that of all steps; start-up does not count.",
    )
    overfit_batches: int | None = Field(
        default=None, ge=1, description="Train on the first N global batches again and again, as a check; default: off."
    )
    precision: Precision = Field(
        default="fp32",
        description="bf16 and fp16-mixed compute in 16 bits and keep weights, optimizer and reductions in fp32; "
        "bf16-true keeps the weights in bf16, too; fp8 multiplies matrices of blocks in 8 bits, on Hopper and newer. "
        "Names of Lightning, such as bf16-mixed and 32-true, are understood.",
    )
    bf16_rounding: Literal["stochastic", "compensated", "nearest"] | None = Field(
        default=None,
        description="bf16-true: how an updated weight is rounded. stochastic (default): up or down by chance, so that "
        "small updates count on average; compensated: the rest is kept, in 2 more bytes a weight; nearest: updates "
        "below half a digit are lost.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights and of dropout.")
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="Clip the global gradient norm to this.")
    max_grad_value: float | None = Field(
        default=None, gt=0, description="Bound each number of the gradient by this, after its norm was clipped."
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the numbers that are left out of embeddings, attention weights and each block's two "
        "additions while it trains; another share for each step and sequence, the same over any number of workers.",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of each label that is spread over the whole vocabulary. Trained for; the loss that is shown "
        "stays the plain one. Of preferences: preference.label_smoothing.",
    )
    z_loss: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the squared logarithm of the softmax's denominator, which keeps logits small; such as "
        "0.0001. Trained for, and not part of the loss that is shown.",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Keep a moving average of the weights, of which each step leaves this share; such as 0.999. See "
        "validation.ema and `launch export --ema`.",
    )
    load_balancing_loss: float = Field(
        default=0.0,
        ge=0,
        description="Experts: weight of the load balancing loss, which is taken of each sequence and trained for but "
        "not part of the loss that is shown; such as 0.01; default: 0, none.",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="auto: the GPUs asked for, else the CPU. mps, the GPU of a Mac, is untried."
    )

    @field_validator("precision", mode="before")
    @classmethod
    def _by_its_name(cls, given: object) -> object:
        return canonical(given)

    @field_validator("device", mode="before")
    @classmethod
    def _devices_of_others(cls, given: object) -> object:
        if given in ("rocm", "hip"):
            raise ValueError(f"{given}: write cuda, torch's name for AMD's GPUs too; they are untried")
        return given

    @field_validator("max_time", mode="before")
    @classmethod
    def _is_a_time(cls, given: object) -> object:
        text = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
        if isinstance(text, str) and not seconds_of(text):
            raise ValueError(f"{given!r} is no time; write HH:MM:SS, D-HH:MM:SS or minutes")
        return text

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
    tp: int = Field(
        default=1,
        ge=1,
        description="Workers that share the heads and MLPs of each block and see the same tokens (tensor parallel).",
    )
    cp: int = Field(
        default=1,
        ge=1,
        description="Workers that share each sequence, a stretch of tokens each (context parallel); for long ones.",
    )
    shard_level: Literal[0, 2, 3] = Field(
        default=3,
        description="What workers share, as the levels of ZeRO. 3: weights, gradients and optimizer; 2: the same, but "
        "weights are whole from the forward to the backward; 0: nothing, each worker has a whole copy (DDP).",
    )
    cpu_offload: bool = Field(
        default=False, description="Keep weights, gradients and optimizer in the CPU's memory, and update them there."
    )
    activation_checkpointing: Literal["none", "full", "op"] = Field(
        default="none",
        description="full: keep only the inputs of each block and compute the rest again; op: keep the results of its "
        "matrix products and of attention, too.",
    )
    activation_checkpointing_every: int = Field(
        default=1, ge=1, description="Of every so many blocks one is checkpointed, and the others keep all; 1: each."
    )
    compile: bool = Field(default=False, description="torch.compile each block.")
