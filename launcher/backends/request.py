"""The resources that a plan asks of a scheduler, and the request that it will be sent: values only."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from launchyard.run.records import Shape

# Drawn anew in each attempt.
ATTEMPT = "{attempt}"
SETUP_ERROR = "SetupError"  # begins the line of a job's log that names the command of `setup` that ended the job
ENDPOINT = "{endpoint}"


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class After(Frozen):
    """Jobs of a scheduler that have to be over before another one starts."""

    success: str | None = Field(default=None, description="Has to end well: `after` of a recipe.")
    end: str | None = Field(default=None, description="Has to end, however it does: the job before it in a sweep.")


AFTER_NOTHING = After()


class Ask(Frozen):
    """The needs of a run in a place."""

    run_id: str
    run_url: str
    shape: Shape
    gpus: int = Field(default=0, description="Of each node, asked of a scheduler.")
    spares: int = Field(default=0, description="Further nodes that wait to take the place of one that is lost.")
    sizes: tuple[int, ...] = Field(description="Numbers of nodes that will do, the most first.")
    environment: dict[str, str] = Field(default={}, description="Of all processes of the run.")
    python: str = Field(description="Interpreter of the launcher.")
    logs: str = Field(description="Folder for jobs' own output where the run directory is remote.")
    time_limit: str | None = Field(default=None, description="Wall time of one attempt.")
    after: After = Field(default=AFTER_NOTHING, description="The scheduler's jobs that have to be over before.")


class Request(BaseModel):
    """The request to a scheduler. Each backend has its own kind; the values that others need are fields."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str = Field(description="As it is sent, for people.")
    notice_seconds: int | None = Field(default=None, description="Time to save in before a job's time is over.")


class Process(Frozen):
    """One process as it will be started. `env` is what it gets on top of its parent's."""

    role: Literal["owner", "agent", "torchrun", "worker"]
    node_rank: int
    argv: list[str]
    env: dict[str, str]
