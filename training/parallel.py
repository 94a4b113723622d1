"""Cut a model over workers: activation checkpointing, then compile, then FSDP2, as plain functions in that order.

Knows nothing of data, steps or checkpoints, except where this rank's part of a tensor lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from launchyard.host.compiled import keep_compiled_code
from launchyard.model.adapter import Adapter
from launchyard.model.layout import stays_fp32
from launchyard.model.parallel.spans import SpanRanks
from launchyard.model.parallel.trained import SharedTransformer, TensorRanks
from launchyard.model.precision import PRECISIONS, Precision
from launchyard.training.recipe import Recipe
from launchyard.training.sections.train import ParallelConfig

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def needs_sharding(recipe: Recipe, world_size: int, adapter: Adapter | None = None) -> bool:
    """One worker in fp32 or fp64 needs no FSDP, unless its weights lie elsewhere. Others do even alone, for fp32 master
    weights, unless an adapter trains alone: it is fp32 and casts itself. Gradients of bf16-true are summed over micro
    batches in fp32."""
    types = PRECISIONS[recipe.train.precision]
    trains_alone = adapter is not None and adapter.keeps_base and types.stored == "float32"
    return world_size > 1 or recipe.parallel.cpu_offload or (types.computed != types.kept and not trains_alone)


def mesh_shape(parallel: ParallelConfig, world_size: int) -> tuple[int, int]:
    """(dp_replicate, dp_shard) with -1 filled in; ValueError if they and tp do not multiply to the world."""
    if world_size % parallel.tp:
        raise ValueError(f"parallel.tp: {parallel.tp} workers cannot share a model among {world_size}")
    if world_size % (parallel.tp * parallel.cp):
        raise ValueError(f"parallel.cp: {parallel.cp} workers cannot share sequences among {world_size}")
    world_size //= parallel.tp
    if parallel.shard_level == 0:
        return world_size, 1
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
    sizes = {"dp_replicate": replicate, "dp_shard": shard, "tp": parallel.tp}
    named = {name: size for name, size in sizes.items() if size > 1 or name == "dp_shard"}
    return init_device_mesh(device.type, tuple(named.values()), mesh_dim_names=tuple(named))


def multiply_in_float8(blocks: nn.ModuleList) -> None:
    """Every matrix of a block: inputs, weights and gradients in 8 bits, each with one scale, made for each product."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    convert_to_float8_training(blocks, config=Float8LinearConfig(pad_inner_dim=True))


def checkpoint_activations(blocks: nn.ModuleList, kind: Literal["full", "op"] = "full", every: int = 1) -> None:
    """Keep only the input of one block in `every`, and with `op` its products; the backward computes the rest again."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    options: dict[str, object] = {"preserve_rng_state": False}
    if kind == "op":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _kept_operations())
    for i, block in enumerate(blocks):
        if i % every == 0:
            blocks[i] = checkpoint_wrapper(block, **options)


def _kept_operations() -> list[object]:
    """Products of weights, and fused attention. That of a family without a fused kernel is made again."""
    import torch.nn.attention.varlen  # which makes its operation known

    aten = torch.ops.aten
    attention = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    fused = [getattr(aten, f"_scaled_dot_product_{name}").default for name in attention]
    products = [aten.mm.default, aten.addmm.default, aten._scaled_mm.default, aten._grouped_mm.default]
    return [*products, *fused, torch.ops.torch_attn._varlen_attn.default]


def compile_blocks(blocks: nn.ModuleList) -> None:
    """Compile block by block: one graph serves all, and state-dict keys stay as they are. What is made is kept."""
    keep_compiled_code()
    for block in blocks:
        block.compile()


def torch_type(name: str) -> torch.dtype:
    """Of a name in model/precision.py."""
    found: torch.dtype = getattr(torch, name)
    return found


def shard(model: nn.Module, mesh: DeviceMesh, precision: Precision, parallel: ParallelConfig | None = None) -> None:
    """FSDP2 a block at a time, then the rest. Gradients are summed, not averaged: the loss is already divided
    by the number of valid tokens of the whole global batch."""
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
    )

    parallel = parallel or ParallelConfig()
    types = PRECISIONS[precision]
    compute = torch_type(types.computed)
    # Activations have the right type from the table on; casting inputs would round the rotary tables, which are fp32
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch_type(types.kept), cast_forward_inputs=False)
    whole = {parameter for name, parameter in model.named_parameters() if stays_fp32(name)}  # few, and none is trained
    on_cpu = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if parallel.cpu_offload else OffloadPolicy()
    cut = partial(fully_shard, mesh=mesh, mp_policy=policy, offload_policy=on_cpu, ignored_params=whole)
    for block in model.blocks:
        cut(block, reshard_after_forward=parallel.shard_level != 2)
    cut(model, reshard_after_forward=False)
    if mesh.size() > 1:
        gather_ahead(model.blocks)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no pre-multiplied sum


def gather_ahead(blocks: nn.ModuleList) -> None:
    """Ask for the next block before this one computes, in the forward; in the backward FSDP does so by itself.

    Without it the next one is asked for when the host comes to it: late, where the host is hardly ahead of the GPU.
    There are two blocks whole either way.
    """
    for block, following in pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])


def parallelize(model: nn.Module, *, parallel: ParallelConfig, precision: Precision, mesh: DeviceMesh | None) -> None:
    """Apply the recipe's parallelism to a model on the meta device; without a mesh it stays whole."""
    if precision == "fp8":
        multiply_in_float8(model.blocks)
    if parallel.activation_checkpointing != "none":
        checkpoint_activations(model.blocks, parallel.activation_checkpointing, parallel.activation_checkpointing_every)
    if parallel.compile:
        compile_blocks(model.blocks)
    if mesh is not None:
        shard(model, _of_data(mesh), precision, parallel)


def _of_data(mesh: DeviceMesh) -> DeviceMesh:
    """The axes over which a batch is cut."""
    names = mesh.mesh_dim_names or ()
    if "tp" not in names:
        return mesh
    return mesh["dp_replicate", "dp_shard"] if "dp_replicate" in names else mesh["dp_shard"]


def tensor_ranks(mesh: DeviceMesh | None) -> TensorRanks | None:
    """This worker among those that share its matrices; None if it has them whole."""
    if mesh is None or "tp" not in (mesh.mesh_dim_names or ()):
        return None
    return TensorRanks(mesh.get_local_rank("tp"), mesh["tp"].size(), mesh.get_group("tp"))


def span_ranks(parallel: ParallelConfig, world_size: int, device: torch.device) -> SpanRanks | None:
    """This worker among those that share its sequences; None if there are none. FSDP cuts weights over these, too."""
    from torch.distributed.device_mesh import init_device_mesh

    if parallel.cp == 1:
        return None
    sizes = (world_size // (parallel.cp * parallel.tp), parallel.cp, parallel.tp)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("batch", "cp", "tp"))
    return SpanRanks(mesh.get_local_rank("cp"), parallel.cp, mesh.get_group("cp"))


def place_in_model(model: nn.Module, name: str, tensor: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape of the whole parameter, offsets of this rank's part in it), whichever ways it is cut."""
    offsets, _ = shard_extent(tensor)
    shape = tuple(tensor.shape)
    cut = model.cuts[name] if isinstance(model, SharedTransformer) else None
    if cut is None:
        return shape, offsets
    lengths = [*shape]
    starts = [*offsets]
    lengths[cut.axis] *= model.ranks.count
    starts[cut.axis] += cut.places.start
    return tuple(lengths), tuple(starts)


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


def owns_part(model: nn.Module, name: str) -> bool:
    """False on a rank that has a parameter whole as the first of those that share matrices with it has, too."""
    return not isinstance(model, SharedTransformer) or model.cuts[name] is not None or model.ranks.rank == 0


def owned_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Those that no other of the ranks that share matrices counts."""
    for name, parameter in model.named_parameters():
        if owns_part(model, clean_name(name)):
            yield name, parameter


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
