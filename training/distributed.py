"""Ranks and the environment: this worker's rank, and the few collectives that the host side needs.

The only file of training that reads os.environ. Knows no model and no data.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from launchyard.host.environment import GRACE, JOB_END, MARK_ATTEMPT, MARK_NODE, SCRATCH, SLOTS
from launchyard.storage import retry

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")

WAIT_SECONDS = 1800.0  # for a rank that neither comes nor dies


@dataclass(frozen=True)
class World:
    """This worker's ranks, as set by torchrun and the node agent."""

    rank: int
    local_rank: int
    world_size: int
    node_rank: int
    attempt: int
    scratch: str | None
    job_end: float | None
    host: str
    local_world_size: int = 1
    grace_seconds: float | None = None  # from a stop request until the agent ends the workers
    slots: tuple[str, ...] = ()  # two files of the agent's memory for this worker's state; none without them

    @property
    def is_main(self) -> bool:
        """Rank 0 decides, and writes the files that exist once."""
        return self.rank == 0


def read_world() -> World:
    """The world from the environment; without torchrun, a world of one."""
    env = os.environ
    end = env.get(JOB_END)
    grace = env.get(GRACE)
    local_rank = int(env.get("LOCAL_RANK", "0"))
    return World(
        rank=int(env.get("RANK", "0")),
        local_rank=local_rank,
        world_size=int(env.get("WORLD_SIZE", "1")),
        node_rank=int(env.get(MARK_NODE, "0")),
        attempt=int(env.get(MARK_ATTEMPT, "0")),
        scratch=env.get(SCRATCH),
        job_end=float(end) if end else None,
        host=socket.gethostname(),
        local_world_size=int(env.get("LOCAL_WORLD_SIZE", "1")),
        grace_seconds=float(grace) if grace else None,
        slots=tuple(env.get(SLOTS, "").split()[2 * local_rank : 2 * local_rank + 2]),
    )


def node_address() -> str:
    """The address of this machine for others: that of its default route, else its name."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # asks the routing table and sends nothing
        return str(probe.getsockname()[0])
    return socket.gethostname()


def connect(world: World, device: torch.device) -> None:
    """Join the other ranks: gloo for the host's small numbers, NCCL beside it for GPUs.

    The group of a program around this worker is taken as it is. ValueError if it cannot do both.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        check_group(world.world_size, device.type)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=_timeout())
    else:  # a world of one needs no rendezvous
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def check_group(world_size: int, device: str) -> None:
    """ValueError if the process group is of other ranks, or cannot carry numbers of the host."""
    import torch.distributed as dist

    if dist.get_world_size() != world_size:
        raise ValueError(f"this process is one of {dist.get_world_size()} already, and not of {world_size}")
    backends = str(dist.get_backend_config())
    if device == "cuda" and "gloo" not in backends:
        raise ValueError(
            f"the process group has the backends {backends}, and numbers of the host need gloo beside NCCL; make it "
            "with backend='cpu:gloo,cuda:nccl'"
        )


def host_group() -> ProcessGroup:
    """All ranks once more, for a thread of its own: two threads on one group deadlock."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=_timeout())


def _timeout() -> timedelta:
    """Returns the time that ranks wait for one of them: longer than its calls of a store may be retried."""
    return timedelta(seconds=WAIT_SECONDS + retry.current_retry_budget())


def disconnect() -> None:
    """Leave together: without that a late gloo thread sometimes aborts the process at exit (seen).

    On the host: others wait here while rank 0 exports, and NCCL's watchdog ends a rank that waits for ten minutes.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        sum_over_ranks(torch.zeros(1))
        dist.destroy_process_group()


def from_all_ranks(value: Value) -> list[Value]:
    """Each rank's value (small, picklable, made by ourselves), in their order, on every rank."""
    if not is_connected():
        return [value]
    import torch.distributed as dist

    found = [value] * dist.get_world_size()
    dist.all_gather_object(found, value)  # on the host, where its group has both
    return found


def is_connected() -> bool:
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """All-reduce SUM in place, on the tensor's own device; int64 wraps. Nothing to do in a world of one."""
    if is_connected():
        import torch
        import torch.distributed as dist

        if values.dtype == torch.int64 and values.device.type == "cpu":
            _sum_by_pairs(values)
        elif dist.get_world_size() > 1:
            dist.all_reduce(values)
    return values


def _sum_by_pairs(values: torch.Tensor) -> None:
    """Sum in rounds, each with a rank twice as far away: log2 messages one after the other, where gloo's ring has two
    for each rank. Whole numbers only: their sum does not depend on the order.

    Ranks beyond the largest power of two have a lower rank that takes part for them.
    """
    import torch
    import torch.distributed as dist

    rank = dist.get_rank()
    ranks = dist.get_world_size()
    pairing = 1 << (ranks.bit_length() - 1)
    if rank >= pairing:
        dist.send(values, rank - pairing)
        dist.recv(values, rank - pairing)
        return
    theirs = torch.empty_like(values)
    if rank + pairing < ranks:
        dist.recv(theirs, rank + pairing)
        values += theirs
    for distance in (1 << bit for bit in range(pairing.bit_length() - 1)):
        sending = dist.isend(values, rank ^ distance)
        dist.recv(theirs, rank ^ distance)
        sending.wait()
        values += theirs
    if rank + pairing < ranks:
        dist.send(values, rank + pairing)


def from_rank_zero(value: Value, *, group: ProcessGroup | None = None) -> Value:
    """Rank 0's value (small, picklable, made by ourselves) on every rank. group: that of a thread of its own."""
    if not is_connected():
        return value
    import torch
    import torch.distributed as dist

    objects = [value]
    dist.broadcast_object_list(objects, src=0, group=group, device=torch.device("cpu"))
    return objects[0]


def to_rank_zero(value: Value, *, group: ProcessGroup | None = None) -> list[Value] | None:
    """Each rank's value (small, picklable, made by ourselves), in their order, on rank 0; None on the others."""
    if not is_connected():
        return [value]
    import torch.distributed as dist

    if dist.get_rank():
        dist.gather_object(value, dst=0, group=group)
        return None
    found = [value] * dist.get_world_size()
    dist.gather_object(value, found, dst=0, group=group)
    return found
