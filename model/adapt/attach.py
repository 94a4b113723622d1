"""From a built model to an adapted one: the only place that knows which module a kind of adapter puts where."""

from __future__ import annotations

from torch import nn

from launchyard.model.adapt.lora import LowRankEmbedding, add_update
from launchyard.model.adapt.noise import Moment, Noise
from launchyard.model.adapt.prompt import add_prompt, add_scale
from launchyard.model.adapt.targets import prompted, scaled, updates
from launchyard.model.adapt.tokens import add_tokens
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes


def attach(model: nn.Module, config: ModelConfig, adapter: Adapter) -> Moment:
    """Put an adapter's parameters into `model`, on the default device and unfilled. The moment of its dropout."""
    moment = Moment()
    shapes = parameter_shapes(config)
    if adapter.tokens:
        head = model.get_submodule("lm_head")
        add_tokens(model.get_submodule("embed"), head, adapter.tokens, tied=config.tie_embeddings)
    for layer in prompted(config.n_layers, adapter):
        add_prompt(
            model.get_submodule(f"blocks.{layer}.attention"),
            n_tokens=adapter.prompt_tokens,
            dim=config.dim,
            n_heads=config.n_heads,
            turns=config.rotates(layer),
        )
    for name in scaled(shapes, adapter):
        add_scale(model.get_submodule(name))
    for name, update in updates(shapes, adapter).items():
        where, _, leaf = name.rpartition(".")
        parent = model.get_submodule(where)
        base = getattr(parent, leaf)
        if name == "embed":
            setattr(parent, leaf, LowRankEmbedding(base, update))
            continue
        noise = Noise(name, adapter.dropout, moment) if adapter.dropout else None
        add_update(base, update, magnitude=adapter.kind == "dora", noise=noise)
    return moment
