"""What regularisers and averages of weights change in a plan: where they do not fit, and what they take. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launchyard.launcher.plan.plan import PlannedBatch
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.cost import n_params_trained
from launchyard.model.memory import FP32_BYTES
from launchyard.training.recipe import Recipe

MASK_BYTES = 1


def misfits(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Keys that mean nothing beside the others, and what to do."""
    train = recipe.train
    if train.dropout and (recipe.parallel.tp > 1 or recipe.parallel.cp > 1):
        yield (
            "train.dropout",
            "has masks of whole sequences and heads, which parallel.tp and parallel.cp cut; use 1 for both",
        )
    if recipe.validation.ema and train.ema_decay is None:
        yield "validation.ema", "there is no average of the weights; set train.ema_decay, such as 0.999"
    if recipe.data.kind != "preference":
        return
    if train.label_smoothing:
        yield "train.label_smoothing", "is of single tokens; of pairs it is preference.label_smoothing"
    if train.z_loss:
        yield "train.z_loss", "is a term of the loss of single tokens, and data.kind is preference; leave it out"
    if train.dropout:
        yield "train.dropout", "would hide what a preference is measured by; leave it out, or use adapter.dropout"


def with_regularisers(
    memory: dict[str, int],
    recipe: Recipe,
    model: ModelConfig,
    adapter: Adapter | None,
    batch: PlannedBatch,
    *,
    shards: int,
) -> dict[str, int]:
    """Bytes per worker as training_memory gives them, with the averages, and with what dropout keeps."""
    average = 0 if recipe.train.ema_decay is None else FP32_BYTES * -(-n_params_trained(model, adapter) // shards)
    kept = dropout_bytes(recipe, model, batch) if recipe.train.dropout else 0
    return memory | {
        "optimizer": memory["optimizer"] + average,
        "activations": memory["activations"] + kept,
        "total": memory["total"] + average + kept,
    }


def dropout_bytes(recipe: Recipe, model: ModelConfig, batch: PlannedBatch) -> int:
    """Attention weights before and after, which no kernel hides any more, and masks; of one block if it recomputes."""
    tokens = batch.micro_batch_size * batch.seq_len
    element = 2 if recipe.train.precision == "bf16" else FP32_BYTES
    weights = model.n_heads * batch.seq_len * (2 * FP32_BYTES + MASK_BYTES + element)
    additions = 2 * model.dim * (element + MASK_BYTES)
    blocks = 1 if recipe.parallel.activation_checkpointing == "full" else model.n_layers
    return tokens * blocks * (weights + additions)


def averaged_checkpoint(found: int, recipe: Recipe, model: ModelConfig, adapter: Adapter | None) -> int:
    """Bytes of a checkpoint, with the averages that it holds beside all else."""
    return found if recipe.train.ema_decay is None else found + FP32_BYTES * n_params_trained(model, adapter)
