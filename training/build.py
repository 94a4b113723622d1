"""From a config to a model on its devices: meta device -> parallelize -> materialise -> first weights.

The first weights are a pure function of (config, seed, name), each rank making only its own rows, so they do not
depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from launchyard.model.adapt.attach import attach
from launchyard.model.adapt.codes import encode, rounded
from launchyard.model.adapt.dropout import add_dropout
from launchyard.model.adapt.forms import SCALES, Form, form_of, scales_name
from launchyard.model.adapt.quantized import quantise
from launchyard.model.adapt.tokens import tie_head
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.initial import check_start
from launchyard.model.layout import MAGNITUDE, adapter_shapes, parameter_shapes, parameters, stays_fp32
from launchyard.model.network.init import adapter_rows, initial_rows
from launchyard.model.network.mlp import MixtureOfExperts
from launchyard.model.network.transformer import Transformer
from launchyard.model.parallel.spans import span_over
from launchyard.model.parallel.trained import SharedTransformer
from launchyard.model.precision import PRECISIONS
from launchyard.training.batching import Context, sequences_in
from launchyard.training.parallel import (
    clean_name,
    local,
    make_mesh,
    needs_sharding,
    parallelize,
    place_in_model,
    span_ranks,
    tensor_ranks,
    torch_type,
)
from launchyard.training.recipe import Recipe

if TYPE_CHECKING:
    from launchyard.model.weights.load import OnProgress, Weights


def build_model(
    config: ModelConfig,
    recipe: Recipe,
    *,
    world_size: int,
    device: torch.device,
    fill: bool = True,
    adapter: Adapter | None = None,
) -> nn.Module:
    """The sharded model on `device`. `fill=False` leaves the weights as they lie in memory, for a load to follow."""
    layout = parameters(config, adapter)
    adapter = adapter or Adapter()
    form = form_of(adapter)
    sharded = needs_sharding(recipe, world_size, adapter)
    types = PRECISIONS[recipe.train.precision]
    stored = torch_type(types.stored)
    compute = torch_type(types.computed)
    by_adapter = form is not None or (compute != torch.float32 and adapter.kind != "none")
    later = by_adapter or sharded or stored != torch.float32
    mesh = make_mesh(recipe.parallel, world_size, device) if sharded else None
    sharing = tensor_ranks(mesh)
    with torch.device("meta" if later else device):  # whole weights take memory only where they stay whole
        model: nn.Module = Transformer(config) if sharing is None else SharedTransformer(config, sharing)
        if form is not None:
            quantise(model, [name for name in parameter_shapes(config) if layout[name].is_bytes], form)
        model.moment = attach(model, config, adapter)
        model.moment.seed = recipe.train.seed
    spanning = span_ranks(recipe.parallel, world_size, device)
    if spanning is not None:
        span_over(model, spanning)
    add_dropout(model, recipe.train.dropout, model.moment)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(layout[name].trained)
        if later and not (layout[name].is_bytes or stays_fp32(name)):
            # A frozen one never changes, so it has the type that it is computed with anyway.
            parameter.data = parameter.data.to(stored if layout[name].trained else compute)
    parallelize(model, parallel=recipe.parallel, precision=recipe.train.precision, mesh=mesh)
    if later:
        _make_room(model, device, on_cpu=recipe.parallel.cpu_offload)
        if config.tie_embeddings:  # to_empty gives each name its own storage
            tie_head(model.embed, model.lm_head)
    balance_experts(model, recipe)
    if fill:
        fill_weights(model, config, recipe, adapter=adapter)
    return model


def _make_room(model: nn.Module, device: torch.device, *, on_cpu: bool) -> None:
    """Memory for weights; with on_cpu those that are whole on every rank alone are where the products are."""
    model.to_empty(device="cpu" if on_cpu else device)
    for name, parameter in model.named_parameters() if on_cpu else ():
        if stays_fp32(name):
            parameter.data = parameter.data.to(device)


def balance_experts(model: nn.Module, recipe: Recipe, sequences: int | None = None) -> None:
    """Weigh the imbalance of experts: the recipe's coefficient times its mean over layers and sequences.

    Of each sequence alone, so that accumulation and any number of workers give the gradients of one big batch.
    """
    sequences = sequences or recipe.train.global_batch_size
    layers = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for layer in layers:
        layer.balance_weight = recipe.train.load_balancing_loss / (len(layers) * sequences)


def ramp_balance(context: Context, model: nn.Module, step: int) -> None:
    """The loss that balances experts is a mean over sequences, whose number a ramp changes."""
    recipe = context.recipe
    if recipe.train.load_balancing_loss and (recipe.train.batch_size_ramp or recipe.data.seq_len_ramp):
        balance_experts(model, recipe, sequences_in(recipe.train, step) * context.sequence_cuts(step))


@torch.no_grad()
def fill_weights(
    model: nn.Module,
    config: ModelConfig,
    recipe: Recipe,
    *,
    adapter: Adapter | None = None,
    only_frozen: bool = False,
    on_progress: OnProgress | None = None,
) -> None:
    """The first weights: each rank reads or makes its own rows, one tensor after the other, and codes those that the
    adapter quantises.

    `only_frozen`: of parameters that do not train, which no checkpoint holds.
    """
    adapter = adapter or Adapter()
    form = form_of(adapter)
    of_adapter = adapter_shapes(config, adapter)
    wanted: dict[str, range] = {}
    added: dict[str, range] = {}
    parts: dict[str, Tensor] = {}
    corners: dict[str, tuple[int, ...]] = {}
    for raw_name, parameter in model.named_parameters():
        if only_frozen and parameter.requires_grad:
            continue
        name = clean_name(raw_name)
        parts[name] = local(parameter)
        _, offsets = place_in_model(model, name, parameter)
        corners[name] = offsets
        if not name.endswith(SCALES):  # which come with their codes
            (added if name in of_adapter else wanted)[name] = range(offsets[0], offsets[0] + len(parts[name]))
    for name, rows in _first_rows(config, recipe, wanted, on_progress):
        for axis in range(1, rows.ndim if form is None else 0):
            rows = rows.narrow(axis, corners[name][axis], parts[name].shape[axis])
        _place(parts, name, rows, form)
    for name, place in added.items():
        if not name.endswith(MAGNITUDE):  # which come with their matrices
            seed = recipe.train.seed
            rows = adapter_rows(name, of_adapter[name], seed=seed, start=place.start, stop=place.stop)
            parts[name].copy_(rows)


def _place(parts: dict[str, Tensor], name: str, rows: Tensor, form: Form | None) -> None:
    """Put rows of the base where they belong, coded where they are to be, and their norms where they are magnitudes."""
    magnitude = parts.get(name.removesuffix(".weight") + MAGNITUDE)
    if name == "embed.weight":
        magnitude = parts.get("lm_head" + MAGNITUDE)  # of a tied head; one of its own comes behind the table
    scales = parts.get(scales_name(name))
    if form is None or scales is None:
        parts[name].copy_(rows)
        if magnitude is not None:
            magnitude.copy_(parts[name].float().norm(dim=1))
        return
    coded = encode(rows.to(parts[name].device), form)
    parts[name].copy_(coded.codes)
    scales.copy_(coded.scales)
    if magnitude is not None:
        magnitude.copy_(rounded(rows.float(), form).norm(dim=1))


def _first_rows(
    config: ModelConfig, recipe: Recipe, wanted: dict[str, range], on_progress: OnProgress | None
) -> Iterator[tuple[str, Tensor]]:
    """These rows of the weights to start from, or of random ones."""
    if not wanted:
        return
    if recipe.model.init_from:
        from launchyard.model.weights.load import read_rows

        yield from read_rows(open_initial_weights(recipe.model.init_from, config), wanted, on_progress)
        return
    shapes = parameter_shapes(config)
    for name, rows in wanted.items():
        yield name, initial_rows(config, name, shapes[name], seed=recipe.train.seed, start=rows.start, stop=rows.stop)


def open_initial_weights(source: str, config: ModelConfig) -> Weights:
    """Weights to start from, with the model's vocabulary; ValueError if the model cannot start from them."""
    from launchyard.model.weights.load import open_weights, resized

    found, weights = open_weights(source)
    try:
        check_start(config, found, source)
    except ValueError as error:
        raise ValueError(f"model.init_from: {error}") from error
    return resized(weights, found, config)
