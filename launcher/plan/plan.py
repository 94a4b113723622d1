"""The plan as a value: everything that follows from a recipe in a place, before anything runs."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializeAsAny, SerializerFunctionWrapHandler, model_serializer

from launchyard.host.devices import Device
from launchyard.launcher.backends.request import Frozen, Process, Request
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.run.records import Shape
from launchyard.storage.options import StoreOptions
from launchyard.training.spec import DataSpec, Storage


class PlannedData(Frozen):
    """The data as far as it is known. Not prepared: the token counts are estimates and the folders do not exist yet."""

    spec: DataSpec
    vocab_size: int | None
    prepared: bool = True
    missing: str | None = Field(default=None, description="The reason why nothing of it is known.")


class PlannedBatch(Frozen):
    """One optimizer step. Sizes count sequences."""

    global_batch_size: int
    micro_batch_size: int
    grad_accum_steps: int
    seq_len: int
    tokens_per_step: int


class Mesh(Frozen):
    dp_replicate: int
    dp_shard: int
    tp: int = 1
    cp: int = 1


class PlannedSpeed(Frozen):
    """Of all workers together, in steps alone: without saves and validations."""

    tokens_per_second: float
    how: str = Field(description="How this is known, in words.")


class Plan(Frozen):
    """Everything that follows from a recipe in a place, before anything runs. Bytes, tokens and steps are counts."""

    run_id: str
    name: str
    run_url: str
    cluster: str
    scheduler: str
    device: Device
    nnodes: int
    nproc_per_node: int
    world_size: int
    model: ModelConfig
    adapter: Adapter | None = Field(default=None, description="None: every parameter trains.")
    data: DataSpec
    data_prepared: bool
    batch: PlannedBatch
    mesh: Mesh
    precision: str
    max_steps: int
    total_tokens: int
    epochs: list[float] = Field(description="Passes over each source; none while the data is not there.")
    n_params: int
    n_params_trained: int
    flops_per_token: float
    memory: dict[str, int] = Field(description="Bytes of tensors per worker, estimated: at the peak of a step.")
    speed: PlannedSpeed | None = Field(default=None, description="None: nothing was measured that is like it.")
    memory_available: int | None = Field(description="Bytes that a worker could have.")
    checkpoint_bytes: int
    storage: Storage
    store: StoreOptions = Field(description="How stores are reached; secrets are elsewhere.")
    environment: dict[str, str]
    script: str | None = Field(default=None, description="What the scheduler is sent, as text.")
    request: SerializeAsAny[Request] | None = Field(default=None, description="The same as a value.")
    processes: list[Process]
    notes: list[str]

    @property
    def shape(self) -> Shape:
        return Shape(nnodes=self.nnodes, nproc_per_node=self.nproc_per_node, device=self.device)

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the request where there is no scheduler, and what there is none of."""
        fields: dict[str, Any] = handler(self)
        for name in ("request", "adapter", "speed"):
            if fields.get(name) is None:
                fields.pop(name, None)
        return fields

    @property
    def state_bytes(self) -> int:
        """Of the state of one worker, of which its agent's memory holds two copies."""
        return self.checkpoint_bytes // (self.mesh.dp_shard * self.mesh.tp)

    @property
    def agent(self) -> list[str]:
        """The command that starts the agents of all nodes, where a scheduler does."""
        return next((process.argv for process in self.processes if process.role == "agent"), [])


class PlanError(ValueError):
    """All problems of a recipe in this place: (dotted key, what) each."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{key}: {what}" for key, what in problems))
        self.problems = problems
