"""The records of a run directory: owner of an attempt, submission, outcome, environment, scrape target."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from launchyard.host.devices import Device

Outcome = Literal["completed", "stopped", "failed"]
# The reasons of a run whose job was ended by its scheduler's own command.
SCANCEL = "scancel"
RAY_STOP = "ray job stop"
# The sources of the state from which an attempt goes on: its agents, or a checkpoint.
FROM_MEMORY = "memory"
FROM_DISK = "disk"


class Shape(BaseModel):
    """The workers of an attempt: machines, workers on each of them, and their kind of device."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nnodes: int = Field(default=1, ge=1, description="Number of nodes.")
    nproc_per_node: int = Field(ge=1, description="Workers on each.")
    device: Device = Field(description="Of each worker, as it was planned.")

    @property
    def world_size(self) -> int:
        return self.nnodes * self.nproc_per_node


class Job(Shape):
    """attempts/NNNN/job.json: owner of an attempt and its machine. Written create-only: the claim to the attempt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int = Field(description="From 0, without a gap.")
    backend: str = Field(description="The `scheduler` of its cluster.")
    job_id: str = Field(
        description="The scheduler's; of a local run the owner's process. With a word before it, that of a program "
        "around the owner: `python 4711`, `ray-train NAME`."
    )
    host: str = Field(description="Machine of the owner.")
    pid: int = Field(description="Process of the owner.")
    pid_started: float = Field(description="Start of that process, by the clock of its machine: pids come again.")
    created: float = Field(description="Time of the claim.")
    overrides: dict[str, Any] = Field(
        default={}, description="All keys of the recipe that a resume has ever changed, dotted."
    )
    plan_digest: str = Field(default="", description="xxh3_64 of plan.json when the attempt was claimed, in hex.")
    damaged: bool = Field(
        default=False, exclude=True, description="The file is damaged; the values are of other files."
    )

    @property
    def shape(self) -> Shape:
        return Shape.model_validate(self.model_dump())

    @property
    def is_guest(self) -> bool:
        """Its owner is a part of another program, such as a notebook, which may outlive the run and must not be ended
        with it."""
        return " " in self.job_id


class Submission(Shape):
    """submissions/NNNN.json: the facts with which a job in a queue claims its attempts. Written before it is sent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    backend: str = Field(description="The `scheduler` of its cluster.")
    submitted: float = Field(description="Time of the submission.")
    env: dict[str, str] = Field(default={}, description="Environment of the agents and workers; holds no secrets.")
    agent: list[str] = Field(default=[], description="argv that starts the agents, with {attempt} and {endpoint}.")
    job_id: str = Field(default="", description="The scheduler's; in a file of its own, once it has accepted the job.")
    place: dict[str, Any] = Field(
        default={}, description="Address of its scheduler, if the environment does not name it."
    )
    overrides: dict[str, Any] = Field(default={}, description="Of the attempts that it will claim.")
    continues: str = Field(
        default="",
        description="The job whose work it goes on with, if a job has sent it where the site does not requeue.",
    )

    @property
    def shape(self) -> Shape:
        return Shape.model_validate(self.model_dump())


class OutcomeRecord(BaseModel):
    """outcome.json of an attempt, or of the run: how it ended."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    outcome: Outcome = Field(description="Kind of end; the run goes on from `stopped` and `failed`.")
    reason: str = Field(description="Reason, in a word or two: `done`, `stop`, `preempted`, `killed`, `hung` …")
    message: str = Field(default="", description="The same for people, in a line.")
    attempt: int = Field(description="Number of the attempt; of a run, its last.")
    step: int | None = Field(default=None, description="Finished optimizer steps, if known.")
    checkpoint: str | None = Field(default=None, description="Folder of the newest checkpoint, in the run directory.")
    fatal: bool = Field(default=False, description="Would another try end the same way?")
    rank: int | None = Field(default=None, description="The worker that failed first, if one did.")
    time: float = Field(description="Time of the end.")


class Acknowledged(BaseModel):
    """acknowledged.json: somebody knows of an end, so that nobody is paged for it; another end pages again."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int = Field(description="The newest one then.")
    state: str = Field(description="Of the run then: `failed` or `lost`.")
    by: str = Field(description="User and machine.")
    note: str = Field(default="", description="What they said to it.")
    time: float = Field(description="When.")


class Target(BaseModel):
    """attempts/NNNN/targets/NNNNN.json: where a worker serves its metrics, from when it listens until its clean end."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rank: int = Field(description="Of the worker.")
    url: str = Field(description="Its metrics, in the text format of Prometheus.")
    node: str = Field(description="Name of its machine.")
    time: float = Field(description="Time when it began to listen, in seconds since the epoch.")


class BadNode(BaseModel):
    """A node on which nothing of the run could be started."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    node_id: str = Field(description="The scheduler's name for it.")
    host: str = Field(description="Name of the machine, for people.")
    reason: str = Field(description="The scheduler's words.")
    time: float = Field(description="When that was, in seconds since the epoch.")


class BadNodes(BaseModel):
    """submissions/bad_nodes.json: the nodes that the next attempts leave out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    nodes: list[BadNode]


class EnvironmentRecord(BaseModel):
    """attempts/NNNN/environment.json: what is installed where rank 0 runs. No secrets; an empty value: not there."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    python: str = Field(description="Implementation and version.")
    executable: str = Field(description="The interpreter.")
    packages: dict[str, str] = Field(description="Version of every Python package on its path.")
    sources: dict[str, str] = Field(default={}, description="URL of packages from elsewhere than an index, and commit.")
    conda: list[str] = Field(default=[], description="Packages of its conda environment as NAME-VERSION-BUILD.")
    torch: str = Field(description="Version, and the commit it was built from.")
    cuda: str = Field(default="", description="CUDA or ROCm that torch was built for.")
    cudnn: str = Field(default="", description="Version of cuDNN.")
    nccl: str = Field(default="", description="Version of NCCL.")
    driver: str = Field(default="", description="NVIDIA's kernel driver.")
    gpus: list[str] = Field(default=[], description="Models of the GPUs that rank 0 sees.")
    system: str = Field(default="", description="Operating system.")
    kernel: str = Field(default="", description="Release of its kernel.")
    libc: str = Field(default="", description="C library that Python was built with.")
    machine: str = Field(default="", description="Architecture, e.g. x86_64.")
    cpu: str = Field(default="", description="Model of the processor.")
    modules: list[str] = Field(default=[], description="Environment modules that were loaded, in order.")
    module_files: list[str] = Field(default=[], description="Their files.")
    image: str = Field(default="", description="Container image.")
    variables: dict[str, str] = Field(default={}, description="Settings of CUDA, NCCL, torch, OpenMP and the like.")
