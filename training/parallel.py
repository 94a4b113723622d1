"""Cut a model over workers: activation checkpointing, then compile, then FSDP2, as plain functions in that order.

Knows nothing of data, steps or checkpoints, except where this rank's part of a tensor lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from launchyard.model.adapter import Adapter
from launchyard.model.layout import stays_fp32
from launchyard.training.sections.train import ParallelConfig, TrainConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def needs_sharding(train: TrainConfig, world_size: int, adapter: Adapter | None = None) -> bool:
    """One worker in fp32 needs no FSDP. bf16 does even alone, for fp32 master weights, unless an adapter trains alone:
    it is fp32 and casts itself."""
    trains_alone = adapter is not None and adapter.keeps_base
    return world_size > 1 or (train.precision != "fp32" and not trains_alone)


def mesh_shape(parallel: ParallelConfig, world_size: int) -> tuple[int, int]:
    """(dp_replicate, dp_shard) with -1 filled in; ValueError if they do not multiply to the world."""
    replicate = parallel.dp_replicate
    shard = parallel.dp_shard if parallel.dp_shard > 0 else world_size // replicate
    if replicate * shard != world_size:
        raise ValueError(
            f"parallel: dp_replicate {replicate} x dp_shard {parallel.dp_shard} does not give {world_size} workers"
        )
    return replicate, shard


def make_mesh(parallel: ParallelConfig, world_size: int, device: torch.device) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    replicate, shard = mesh_shape(parallel, world_size)
    if replicate == 1:
        return init_device_mesh(device.type, (shard,), mesh_dim_names=("dp_shard",))
    return init_device_mesh(device.type, (replicate, shard), mesh_dim_names=("dp_replicate", "dp_shard"))


def checkpoint_activations(blocks: nn.ModuleList) -> None:
    """Keep only the input of each block and compute the rest again in the backward."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    for i, block in enumerate(blocks):
        blocks[i] = checkpoint_wrapper(block, preserve_rng_state=False)


def compile_blocks(blocks: nn.ModuleList) -> None:
    """Compile block by block: one graph serves all, and state-dict keys stay as they are."""
    for block in blocks:
        block.compile()


def shard(model: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """FSDP2 a block at a time, then the rest. Gradients are summed, not averaged: the loss is already divided
    by the number of valid tokens of the whole global batch."""
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    compute = torch.bfloat16 if precision == "bf16" else torch.float32
    # Activations have the right type from the table on; casting inputs would round the rotary tables, which are fp32
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    whole = {parameter for name, parameter in model.named_parameters() if stays_fp32(name)}  # few, and none is trained
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=whole)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False, ignored_params=whole)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum


def parallelize(model: nn.Module, *, parallel: ParallelConfig, precision: str, mesh: DeviceMesh | None) -> None:
    """Apply the recipe's parallelism to a model on the meta device; without a mesh it stays whole."""
    if parallel.activation_checkpointing == "full":
        checkpoint_activations(model.blocks)
    if parallel.compile:
        compile_blocks(model.blocks)
    if mesh is not None:
        shard(model, mesh, precision)


def time_collectives(model: nn.Module, waits: Callable[[], AbstractContextManager[None]]) -> None:
    """Enter `waits()` where FSDP gathers and reduces, and that blocks: on a CPU. Not around the all-reduce of HSDP.

    On a GPU collectives are only enqueued, so the host cannot time them.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter

    class AllGather(DefaultAllGather):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with waits():
                return super().__call__(*args, **kwargs)

    class ReduceScatter(DefaultReduceScatter):
        def __call__(self, *args: object, **kwargs: object) -> object:
            with waits():
                return super().__call__(*args, **kwargs)

    gather = AllGather()
    scatter = ReduceScatter()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_all_gather(gather)
            module.set_custom_reduce_scatter(scatter)


def clean_name(name: str) -> str:
    """A parameter's name without the traces of wrappers."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def local(tensor: Tensor) -> Tensor:
    """This rank's part, without a copy."""
    return tensor.to_local() if _is_dtensor(tensor) else tensor


def shard_extent(tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(offsets, sizes) of this rank's part in the whole tensor."""
    if not _is_dtensor(tensor):
        return (0,) * tensor.ndim, tuple(tensor.shape)
    (chunk,) = tensor.__create_chunk_list__()
    return tuple(chunk.offsets), tuple(chunk.sizes)


def replica(tensor: Tensor) -> tuple[int, int]:
    """(which copy of this part this rank holds, number of copies)."""
    if not _is_dtensor(tensor):
        return place_in_world()
    mesh: Any = tensor.device_mesh
    return (mesh.get_local_rank("dp_replicate"), mesh.size(0)) if mesh.ndim == 2 else (0, 1)


def place_in_world() -> tuple[int, int]:
    """(this rank, number of ranks); (0, 1) where there are no others."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def shard_group(tensor: Tensor) -> ProcessGroup | None:
    """The ranks among which its rows are cut; None if this one holds them all."""
    if not _is_dtensor(tensor):
        return None
    mesh: Any = tensor.device_mesh
    return mesh.get_group("dp_shard") if mesh.size(mesh.ndim - 1) > 1 else None


def sum_over_shards(values: Sequence[Tensor], group: ProcessGroup | None) -> list[Tensor]:
    """The sums over a group, of each value in its own type, added up in fp64 by one collective."""
    if group is None or not values:
        return list(values)
    import torch.distributed as dist

    flat = torch.cat([value.reshape(-1).double() for value in values])
    dist.all_reduce(flat, group=group)
    parts = flat.split([value.numel() for value in values])
    return [part.view(value.shape).to(value.dtype) for part, value in zip(parts, values, strict=True)]


def shard_rows(rows: int, ranks: int) -> list[int]:
    """How many of a tensor's rows each rank of a shard group holds: as many as the first, until none are left."""
    each = -(-rows // ranks)
    return [max(0, min(each, rows - rank * each)) for rank in range(ranks)]


def _is_dtensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")
