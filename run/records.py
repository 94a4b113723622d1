"""The records of a run directory: who owns an attempt, what was submitted, how it ended, where it is scraped."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["completed", "stopped", "failed"]
# The reasons of a run whose job was ended by its scheduler's own command.
SCANCEL, RAY_STOP = "scancel", "ray job stop"


class Job(BaseModel):
    """job.json: who runs an attempt, and where. Written create-only: it is the claim to the attempt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int
    backend: str
    job_id: str
    host: str
    pid: int
    pid_started: float
    created: float
    nnodes: int
    nproc_per_node: int
    device: Literal["cpu", "cuda"]
    overrides: dict[str, Any] = {}


class Submission(BaseModel):
    """submissions/0000.json: with what a job in a queue will claim its attempts. Written before it is sent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    backend: str
    submitted: float
    nnodes: int
    nproc_per_node: int
    device: Literal["cpu", "cuda"]
    env: dict[str, str] = {}
    agent: list[str] = Field(default=[], description="argv that starts the agents, with {attempt} and {endpoint}.")
    job_id: str = Field(default="", description="The scheduler's, once it has accepted it.")
    place: dict[str, Any] = Field(
        default={}, description="How its scheduler is reached, if the environment does not say."
    )
    overrides: dict[str, Any] = {}


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
