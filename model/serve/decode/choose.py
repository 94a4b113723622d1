"""How the next tokens of a model are computed on its device, and why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from launchyard.model.network.transformer import Transformer
from launchyard.model.parallel.network import RankTransformer
from launchyard.model.serve.decode.cuda import CudaGraphRecorder
from launchyard.model.serve.decode.eager import Decoding, EagerDecoding
from launchyard.model.serve.decode.graphs import GraphDecoding, GraphRecorder, spare_rows

_GPU = "cuda"  # the devices that have graphs
_GROUPED = 9  # the compute capability from which on the product of experts does not ask the host for their rows


def new_decoding(
    model: Transformer,
    *,
    n_slots: int,
    length: int,
    rewindable: bool = False,
    graphs: bool | None = None,
    new_recorder: Callable[[], GraphRecorder] | None = None,
) -> Decoding:
    """With a cache of its own. graphs: None takes them where they can be; True: ValueError where they cannot.

    new_recorder: default: that of the model's GPU.
    """
    why = _why_not(model) if new_recorder is None else None
    if graphs and why is not None:
        raise ValueError(f"graphs is True, and there are none {why}; leave it out, or use one GPU")
    with_graphs = graphs is not False and why is None
    n_rows = n_slots + spare_rows(n_slots) if with_graphs else n_slots
    with torch.inference_mode():
        cache = model.new_cache(batch_size=n_rows, length=length, rewindable=rewindable)
        if with_graphs:
            new_recorder = new_recorder or partial(CudaGraphRecorder, cache.device)
            return GraphDecoding(model, cache, new_recorder, n_slots=n_slots, insists=bool(graphs))
    if cache.device.type != _GPU:
        return EagerDecoding(model, cache)
    return EagerDecoding(model, cache, words="without CUDA graphs" + (f": none {why}" if graphs is None else ""))


def _why_not(model: Transformer) -> str | None:
    """Where there are no graphs, as the end of a sentence; None if there are."""
    home = model.embed.weight.device
    if home.type != _GPU:
        return f"on {home.type}"
    if isinstance(model, RankTransformer):
        return "where several ranks share a model"
    if any(parameter.device != home for parameter in model.parameters()):
        return "where a model lies on several devices"
    if model.config.moe is None:
        return None
    if model.dtype != torch.bfloat16 or torch.cuda.get_device_capability(home)[0] < _GROUPED:
        return f"of experts but in bf16 on a GPU of compute capability {_GROUPED}"
    return None
