"""From a built model to an adapted one: the only place that knows which module a kind of adapter puts where."""

from __future__ import annotations

from torch import nn

from launchyard.model.adapt.lora import LowRankEmbedding, add_update
from launchyard.model.adapt.noise import Moment, Noise
from launchyard.model.adapt.targets import updates
from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.layout import parameter_shapes


def attach(model: nn.Module, config: ModelConfig, adapter: Adapter) -> Moment:
    """Put an adapter's parameters into `model`, on the default device and unfilled. The moment of its dropout."""
    moment = Moment()
    for name, update in updates(parameter_shapes(config), adapter).items():
        where, _, leaf = name.rpartition(".")
        parent = model.get_submodule(where)
        base = getattr(parent, leaf)
        if name == "embed":
            setattr(parent, leaf, LowRankEmbedding(base, update))
            continue
        noise = Noise(name, adapter.dropout, moment) if adapter.dropout else None
        add_update(base, update, magnitude=adapter.kind == "dora", noise=noise)
    return moment
