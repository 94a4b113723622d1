"""What a precision needs of devices, packages and the rest of a recipe. Pure: machines are told, not asked."""

from __future__ import annotations

from collections.abc import Iterator

from launchyard.host.packages import install_packages
from launchyard.launcher.backends.hardware import HostFacts
from launchyard.model.adapt.forms import form_of
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes
from launchyard.model.memory import is_narrow
from launchyard.model.parallel.share import check_shared_training
from launchyard.training.recipe import Recipe

FLOAT8_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)
# Optimizers that treat each number of a matrix alone. Others would see a part of it as a whole.
NUMBER_BY_NUMBER = ("adamw", "sgd", "lion", "adamw-schedule-free")
FLOAT8_MULTIPLE = 16  # of both sides of a matrix, for its products in 8 bits


def precision_problems(
    recipe: Recipe, model: ModelConfig | None, device: str, host: HostFacts
) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it)"""
    train = recipe.train
    if train.bf16_rounding is not None and train.precision != "bf16-true":
        yield (
            "train.bf16_rounding",
            f"{train.bf16_rounding} is for train.precision=bf16-true, and not {train.precision}",
        )
    if device == "cpu" and is_narrow(train.precision) and recipe.parallel.compile:
        kind = "bf16" if train.precision.startswith("bf16") else train.precision
        yield "parallel.compile", f"does not work in {kind} on a CPU (torch emits code that does not compile)"
    if train.precision == "fp64" and device == "mps":
        yield "train.precision", "fp64, which Apple's GPUs lack; use fp32, or train.device=cpu"
    if train.precision == "fp8":
        lacks = list(_of_float8(recipe, model, device, host))
        if lacks:
            yield "train.precision", f"fp8 {'; it '.join(lacks)}; bf16 needs none of this"


def parallel_problems(
    recipe: Recipe, model: ModelConfig | None, device: str, workers: int, host: HostFacts
) -> Iterator[tuple[str, str]]:
    parallel = recipe.parallel
    if form_of(recipe.adapter) and workers > 1 and host.old_torch:
        yield (
            "adapter.quantize",
            f"torch {host.old_torch} cannot share a quantized base among workers; update it to 2.12 or newer, or "
            "train with one worker",
        )
    if parallel.tp > 1:
        for what in _of_shared_matrices(recipe, model):
            yield "parallel.tp", what
    if parallel.cp > 1:
        for what in _of_shared_sequences(recipe):
            yield "parallel.cp", f"{parallel.cp}: {what}"
    if parallel.cpu_offload and device != "cuda":
        kind = "CPUs" if device == "cpu" else "Apple's GPU"
        yield "parallel.cpu_offload", f"this run trains on {kind}, whose memory holds all anyway; leave it out"
    if parallel.activation_checkpointing_every > 1 and parallel.activation_checkpointing == "none":
        what = f"{parallel.activation_checkpointing_every}, but no block is checkpointed"
        yield "parallel.activation_checkpointing_every", f"{what}; set parallel.activation_checkpointing=full or op"


def _of_shared_matrices(recipe: Recipe, model: ModelConfig | None) -> Iterator[str]:
    tp = recipe.parallel.tp
    if model is not None:
        try:
            check_shared_training(model, tp)
        except ValueError as error:
            yield f"{tp}: {error}"
    if recipe.adapter != Adapter():
        yield f"{tp}: adapters are not shared by workers; leave tp out, and FSDP shares the model"
    if recipe.optimizer.name not in NUMBER_BY_NUMBER:
        others = ", ".join(NUMBER_BY_NUMBER[:3])
        yield f"{tp}: optimizer.name={recipe.optimizer.name} is of whole matrices; use one of {others}"
    if recipe.parallel.compile:
        yield f"{tp}: does not go with parallel.compile"
    if recipe.train.precision == "fp8":
        yield f"{tp}: does not go with train.precision=fp8"


def _of_shared_sequences(recipe: Recipe) -> Iterator[str]:
    if recipe.data.seq_len % recipe.parallel.cp:
        yield f"data.seq_len, {recipe.data.seq_len}, is no multiple of it"
    if recipe.data.kind != "tokens":
        yield f"rows of data.kind={recipe.data.kind} are not shared by workers, streams of text are"
    if recipe.adapter != Adapter():
        yield "adapters do not train on stretches of sequences"
    if recipe.train.load_balancing_loss:
        yield "train.load_balancing_loss is of whole sequences"
    if recipe.parallel.compile:
        yield "does not go with parallel.compile"


def _of_float8(recipe: Recipe, model: ModelConfig | None, device: str, host: HostFacts) -> Iterator[str]:
    if device != "cuda":
        kind = "CPUs" if device == "cpu" else "Apple's"
        yield f"is computed by GPUs of Hopper and newer alone, and this run trains on {kind}"
    old = [gpu.name for gpu in host.gpus if gpu.capability < FLOAT8_CAPABILITY]
    if device == "cuda" and old:
        yield f"is computed by GPUs of Hopper and newer, which {old[0]} is not"
    if not host.has_torchao:
        yield f"is computed by torchao, which is not installed: {install_packages('torchao')}"
    if recipe.adapter != Adapter():
        yield "is for whole models; adapter.quantize=fp8 keeps a frozen base in 8 bits"
    if model is not None and model.moe is not None:
        yield "has no products of experts here"
    for name, shape in parameter_shapes(model).items() if model is not None else ():
        if name.startswith("blocks.") and len(shape) == 2 and any(side % FLOAT8_MULTIPLE for side in shape):
            yield f"multiplies matrices whose sides are multiples of {FLOAT8_MULTIPLE}, and {name} is {shape}"
            return


def precision_notes(recipe: Recipe, device: str, host: HostFacts) -> Iterator[str]:
    precision = recipe.train.precision
    if not is_narrow(precision):
        return
    if device == "cpu" and precision == "fp16-mixed":
        yield "CPUs have no fast products in fp16: fp32 is several times as fast"
    elif device == "cpu" and not host.cpu_bf16:
        yield "this CPU has no bf16 units: fp32 would be about twice as fast"
    old = [gpu.name for gpu in host.gpus if gpu.capability < (8, 0)]
    if device == "cuda" and precision != "fp16-mixed" and old:
        yield f"{old[0]} has no bf16 units: it is emulated, slowly; it has those of fp16-mixed"
    if precision == "fp8" and not recipe.parallel.compile:
        yield "fp8 without parallel.compile: casts take about as long as products gain"
