"""The records of a run directory: who owns an attempt, what was submitted, how it ended, where it is scraped."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["completed", "stopped", "failed"]
# The reasons of a run whose job was ended by its scheduler's own command.
SCANCEL, RAY_STOP = "scancel", "ray job stop"


class Shape(BaseModel):
    """Who works in an attempt: machines, workers on each of them, and what they compute on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nnodes: int = Field(default=1, ge=1)
    nproc_per_node: int = Field(ge=1)
    device: Literal["cpu", "cuda"]

    @property
    def world_size(self) -> int:
        return self.nnodes * self.nproc_per_node


class Job(Shape):
    """job.json: who runs an attempt, and where. Written create-only: it is the claim to the attempt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int
    backend: str
    job_id: str
    host: str
    pid: int
    pid_started: float
    created: float
    overrides: dict[str, Any] = {}

    @property
    def shape(self) -> Shape:
        return Shape.model_validate(self.model_dump())


class Submission(Shape):
    """submissions/0000.json: with what a job in a queue will claim its attempts. Written before it is sent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    backend: str
    submitted: float
    env: dict[str, str] = {}
    agent: list[str] = Field(default=[], description="argv that starts the agents, with {attempt} and {endpoint}.")
    job_id: str = Field(default="", description="The scheduler's, once it has accepted it.")
    place: dict[str, Any] = Field(
        default={}, description="How its scheduler is reached, if the environment does not say."
    )
    overrides: dict[str, Any] = {}

    @property
    def shape(self) -> Shape:
        return Shape.model_validate(self.model_dump())


class OutcomeRecord(BaseModel):
    """outcome.json: how an attempt, or the run, ended. `reason` is one word or two; `message` is for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    outcome: Outcome
    reason: str
    message: str = ""
    attempt: int
    step: int | None = None
    checkpoint: str | None = None
    fatal: bool = False
    rank: int | None = None
    time: float


class Target(BaseModel):
    """targets/00000.json: where a worker serves its metrics, from when it listens until its clean end."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rank: int
    url: str
    node: str = Field(description="Name of its machine.")
    time: float = Field(description="When it began to listen, in seconds since the epoch.")
