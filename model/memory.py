"""Bytes of a model, in training and in use: closed forms of the config, held against measured peaks. Light.

What is counted: storages of tensors. Not counted: the runtime (about 0.3 GB, more with CUDA), scratch inside a kernel,
buffers of communication, fragmentation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from launchyard.host.devices import Device
from launchyard.model.adapt.forms import form_of
from launchyard.model.adapt.targets import prompted, scaled, updates
from launchyard.model.adapter import LOW_RANK, Adapter
from launchyard.model.config import LatentAttention, ModelConfig
from launchyard.model.cost import n_params, n_params_trained
from launchyard.model.layout import Parameter, block_shapes, parameter_shapes, parameters
from launchyard.model.precision import NUMBER_BYTES, PRECISIONS, Precision

FP32_BYTES = 4
BF16_BYTES = 2
# Bytes of fp32 logits that the loss makes at once. On a CPU: as much as its caches hold (softmax over 128 rows of
# 50,304 takes a third of the time per row that it takes over 256); on a GPU: enough rows to fill it.
LOGIT_CHUNK_BYTES = {"cpu": 26 << 20, "cuda": 512 << 20}
_CHUNK_ROWS = 64  # chunks are multiples of this where they can be
# Bytes of a weight; int8 and int4 with a scale of 16 bits for each block of 32, as Q8_0 and Q4_0 of GGUF.
SERVED_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0 + 2 / 32, "int4": 0.5 + 2 / 32}


def checkpoint_bytes(
    config: ModelConfig,
    adapter: Adapter | None = None,
    *,
    precision: Precision = "fp32",
    compensated: bool = False,
    state: int | None = None,
) -> int:
    """Size of a checkpoint: the trained parameters, what rounding has left, and the optimizer's state; by default the
    two moments of AdamW."""
    types = PRECISIONS[precision]
    trained = n_params_trained(config, adapter)
    moments = 2 * NUMBER_BYTES[types.kept] * trained if state is None else state
    return (NUMBER_BYTES[types.stored] + BF16_BYTES * compensated) * trained + moments


def logit_rows(vocab_size: int, device: str) -> int:
    """Tokens whose logits the loss makes at once; the estimate of memory counts the same."""
    budget = LOGIT_CHUNK_BYTES.get(device, LOGIT_CHUNK_BYTES["cpu"])
    rows = max(16, budget // (FP32_BYTES * vocab_size))
    return rows // _CHUNK_ROWS * _CHUNK_ROWS or rows


# -- training ---------------------------------------------------------------------------------------------------------
Checkpointing = Literal["none", "full", "op"]


@dataclass(frozen=True)
class Savings:
    """What a recipe spares or adds, see its keys of these names; compensated: train.bf16_rounding."""

    activation_checkpointing: Checkpointing = "none"
    every: int = 1  # of so many blocks one is checkpointed
    shard_level: Literal[0, 2, 3] = 3
    cpu_offload: bool = False
    compensated: bool = False
    replicas: int = 1  # of what `shards` workers hold
    spans: int = 1  # workers that share each sequence


def is_narrow(precision: Precision) -> bool:
    """True of one that computes in 16 bits, where norms and softmax compute in fp32 nevertheless."""
    return NUMBER_BYTES[PRECISIONS[precision].computed] == BF16_BYTES


def training_memory(
    config: ModelConfig,
    *,
    micro_batch_size: int,
    seq_len: int,
    shards: int,
    precision: Precision,
    device: Device,
    savings: Savings = Savings(),
    grad_accum_steps: int = 1,
    adapter: Adapter | None = None,
) -> dict[str, int]:
    """Bytes per worker: weights, gradients, optimizer (AdamW), activations, and `total`, the peak of a step.

    Weights, gradients and moments are cut over `shards`, the last two only of trained parameters; their types, and that
    of frozen weights, are those of the precision; parameters gathered in full (table, head and final norm for the whole
    step, and two blocks) count as weights, and so does the buffer in which quantised matrices are made plain.
    Activations are those at the peak of one micro-batch, the loss included. Gradients come as activations go, so the
    total is below the sum of the four; with grad_accum_steps above 1 those of the first micro-batch stay throughout.
    """
    types = PRECISIONS[precision]
    element = NUMBER_BYTES[types.computed]
    stored_bytes = NUMBER_BYTES[types.stored]
    n_trained = math.ceil(n_params_trained(config, adapter) / shards)
    gradients = stored_bytes * n_trained
    layout = parameters(config, adapter)
    stored = sum(_bytes_of(each, stored_bytes if each.trained else element) for each in layout.values())
    resting = 0 if savings.cpu_offload else math.ceil(stored / shards)
    cut = shards * savings.replicas > 1 or savings.cpu_offload or _is_cast_whole(config, layout, precision)
    weights = resting + (_gathered(config, layout, element, level=savings.shard_level) if cut else 0)
    weights += element * _largest_coded(config, layout)
    tokens = micro_batch_size * seq_len // savings.spans
    each = element * tokens
    kept = [
        each * activation_elements(config, layer, seq_len, precision=precision, device=device)
        + each * adapter_elements(config, layer, adapter, precision=precision, device=device)
        + each * _keys_of_others(config, savings.spans)
        + element * _mask_elements(config, layer, seq_len, savings.spans)
        for layer in range(config.n_layers)
    ]
    activations = _shared_masks(config, seq_len, savings.spans) + _activation_peak(
        config, tokens, kept, element, precision=precision, device=device, savings=savings
    )
    table = max(FP32_BYTES, stored_bytes) * _trained_head(config, layout)
    # A tied table's two gradients are there beside their sum, which becomes its gradient or is added to it.
    if grad_accum_steps > 1:
        # Over micro batches they are not cut, and fp32 at least.
        summed = max(FP32_BYTES, stored_bytes) * n_params_trained(config, adapter)
        peak = summed + max(activations + table, 3 * table * config.tie_embeddings)
    else:
        first_block = stored_bytes * sum(map(math.prod, block_shapes(config, 0).values())) // shards
        later = gradients - first_block - (0 if config.tie_embeddings else table // shards)
        at_end = kept[0] + each * _backward_elements(config) + max(0, later)
        peak = max(activations + table, at_end, gradients + 2 * table * config.tie_embeddings)
    if savings.cpu_offload:
        gradients = n_trained = 0
    optimizer = (2 * NUMBER_BYTES[types.kept] + BF16_BYTES * savings.compensated) * n_trained
    memory = {"weights": weights, "gradients": gradients, "optimizer": optimizer, "activations": activations}
    last = _last_reduction(layout, gradients, precision, shards=shards) if cut and grad_accum_steps == 1 else 0
    return memory | {"total": optimizer + max(weights + peak, resting + last)}


def _last_reduction(layout: Mapping[str, Parameter], gradients: int, precision: Precision, *, shards: int) -> int:
    """Bytes of gradients at the end of a backward, where FSDP reduces all that is outside blocks as one.

    It is there whole as it was computed, and once more in the type of the reduction, beside the parts of blocks that
    were reduced before; what was gathered for it is free, and activations are.
    """
    types = PRECISIONS[precision]
    outside = sum(
        math.prod(one.shape) for name, one in layout.items() if one.trained and not name.startswith("blocks.")
    )
    of_blocks = max(0, gradients - NUMBER_BYTES[types.stored] * outside // shards)
    return of_blocks + (NUMBER_BYTES[types.computed] + NUMBER_BYTES[types.kept]) * outside


def _trained_head(config: ModelConfig, layout: Mapping[str, Parameter]) -> int:
    """Numbers of the head's gradient, which is made whole, before all others."""
    head_trains = layout["embed.weight" if config.tie_embeddings else "lm_head.weight"].trained
    return config.padded_vocab_size * config.embed_dim * head_trains


def _is_cast_whole(config: ModelConfig, layout: Mapping[str, Parameter], precision: Precision) -> bool:
    """True where weights are gathered in another type even for one worker, which those of an adapter alone are not."""
    base_trains = any(layout[name].trained for name in parameter_shapes(config))
    return is_narrow(precision) and (base_trains or precision == "bf16-true")


def _activation_peak(
    config: ModelConfig,
    tokens: int,
    kept: list[int],
    element: int,
    *,
    precision: Precision,
    device: Device,
    savings: Savings,
) -> int:
    """The most that the forward has kept: at the loss, or with checkpointing when the last such block has run again."""
    each = element * tokens
    stored = 0
    again = 0
    for layer, whole in enumerate(kept):
        if savings.activation_checkpointing == "none" or layer % savings.every:
            stored += whole
            continue
        products = _product_elements(config, layer, precision) if savings.activation_checkpointing == "op" else 0
        stored += each * (config.dim + products)
        # What is added to the stream right away is no input of a backward.
        added = 2 * config.dim if config.norm_place == "pre" else 0
        again = max(again, whole - each * max(0, products - added))
    at_loss = (
        stored + each * _final_elements(config, precision, device) + _logit_bytes(config, tokens, precision, device)
    )
    return max(at_loss, stored + again + each * _backward_elements(config))


def _product_elements(config: ModelConfig, layer: int, precision: Precision) -> int:
    """Numbers that the products of a block give, a token, and its attention where a fused kernel makes that."""
    made = sum(shape[0] for name, shape in block_shapes(config, layer).items() if len(shape) == 2 and _is_product(name))
    moe = config.moe
    if moe is not None and moe.is_in(layer):
        made += moe.top_k * (2 * moe.ffn_dim + config.dim)
    own = config.attention_softcap is not None or config.attention_sinks or config.positions == "alibi"
    if own or config.latent_attention is not None:
        return made
    return made + config.n_heads * (config.head_dim + (2 if is_narrow(precision) else 1))


def _is_product(name: str) -> bool:
    return name.endswith("_proj.weight") or name in ("mlp.router.weight", "mlp.shared_gate.weight")


def _gathered(config: ModelConfig, layout: Mapping[str, Parameter], element: int, *, level: int) -> int:
    """Bytes of parameters that are there in full during a step: all outside the blocks, and those of two blocks; with
    shard_level 2 of every block."""
    blocks = [0] * config.n_layers
    rest = 0
    for name, parameter in layout.items():
        if name.startswith("blocks."):
            blocks[int(name.split(".")[1])] += _bytes_of(parameter, element)
        else:
            rest += _bytes_of(parameter, element)
    return rest + (sum(blocks) if level == 2 else min(2, config.n_layers) * max(blocks))


def _bytes_of(parameter: Parameter, element: int) -> int:
    return math.prod(parameter.shape) * (1 if parameter.is_bytes else element)


def _largest_coded(config: ModelConfig, layout: Mapping[str, Parameter]) -> int:
    """Numbers of the largest matrix that is made plain for its products."""
    sizes = (math.prod(shape) for name, shape in parameter_shapes(config).items() if layout[name].is_bytes)
    return max(sizes, default=0)


def activation_elements(
    config: ModelConfig, layer: int, seq_len: int, *, precision: Precision = "fp32", device: Device = "cpu"
) -> int:
    """Numbers of the compute type that a block keeps for its backward, a token."""
    norms = _kept_by_norms(config, precision, device)
    return norms + _kept_by_attention(config, seq_len, precision, device) + _kept_by_mlp(config, layer)


def adapter_elements(
    config: ModelConfig,
    layer: int,
    adapter: Adapter | None,
    *,
    precision: Precision = "fp32",
    device: Device = "cpu",
) -> int:
    """Numbers of the compute type that a block keeps besides for an adapter, a token: below 0 where it keeps less."""
    if adapter is None:
        return 0
    kept = 0
    if adapter.kind in LOW_RANK:
        kept += _kept_by_updates(config, layer, adapter, precision) - _spared(config, layer, adapter, precision, device)
    if layer in prompted(config.n_layers, adapter):
        _, keys, values = cache_sizes(config)
        if config.latent_attention is not None:  # no fused kernel: the scaled query and the weights
            kept += config.n_heads * (values + keys + adapter.prompt_tokens)
        else:  # what a query sees of the text beside the sum of both, what of the prompt, the sum of the softmax
            kept += config.n_heads * (2 * values + (2 if is_narrow(precision) else 1))
    shapes = parameter_shapes(config)
    names = [name for name in scaled(shapes, adapter) if _is_in(name, layer)]
    # Outputs without the scale; but the activation is made again.
    again = adapter.kind not in LOW_RANK and _makes_gates_again(config, layer, adapter, device)
    return kept + sum(shapes[f"{name}.weight"][0] for name in names) - config.ffn_dim * again


def _kept_by_updates(config: ModelConfig, layer: int, adapter: Adapter, precision: Precision) -> int:
    """Of each update r numbers; with magnitudes both outputs; with dropout the input that is left, and the mask."""
    shapes = parameter_shapes(config)
    kept = 0.0
    for name, update in updates(shapes, adapter).items():
        if _is_in(name, layer):
            rows, columns = shapes[f"{name}.weight"]
            kept += update.rank + 2 * rows * (adapter.kind == "dora")
            if adapter.dropout:
                kept += columns * (1.5 if is_narrow(precision) else 1.25)
    return int(kept)


def _spared(config: ModelConfig, layer: int, adapter: Adapter, precision: Precision, device: Device) -> int:
    """What a block need not keep as it does not train but for updates: see model/network/{norms,mlp,remade}.py."""
    layout = parameters(config, adapter)
    base = [name for name in parameter_shapes(config) if _is_in(name, layer)]
    if any(layout[name].trained for name in base):
        return 0
    moe = config.moe
    if moe is not None and moe.is_in(layer):
        mlp = moe.top_k * (config.dim + moe.ffn_dim)
    else:
        mlp = 2 * config.ffn_dim * _makes_gates_again(config, layer, adapter, device)
    return mlp + _spared_by_norms(config, precision, device)


def _spared_by_norms(config: ModelConfig, precision: Precision, device: Device) -> int:
    inside, keeps_input = _inside_norm(config, precision, device)
    again = device == "cpu" and config.norm == "rmsnorm" and config.norm_weight == "plain"
    normalised = inside if keeps_input else inside - 2  # the rest is a copy in fp32
    own = inside if again else normalised
    streams = 0 if config.norm_place == "pre" else 2 * own
    if config.norm_place in ("pre", "sandwich"):
        streams += (1 if config.shared_norm else 2) * (own + again)
    kept_instead = again and not keeps_input  # an input that was a copy in fp32
    streams -= kept_instead * (1 if config.parallel_residual else 2)
    latent = config.latent_attention
    if latent is not None:
        return config.dim * streams + normalised * ((latent.q_rank or 0) + latent.kv_rank)
    if config.qk_norm is None or config.norm != "rmsnorm":
        return config.dim * streams
    return config.dim * streams + (own - kept_instead) * (config.n_heads + config.n_kv_heads) * config.head_dim


def _makes_gates_again(config: ModelConfig, layer: int, adapter: Adapter | None, device: Device) -> bool:
    """True of an MLP that keeps the inputs of its gate alone, see model/network/mlp.py."""
    if adapter is None or device != "cpu" or not config.gated_mlp or config.activation != "silu":
        return False
    if config.has_experts(layer):
        return False
    name = f"blocks.{layer}.mlp.gate_proj"
    shapes = parameter_shapes(config)
    return form_of(adapter) is not None or name in updates(shapes, adapter) or name in scaled(shapes, adapter)


def _is_in(name: str, layer: int) -> bool:
    return name.startswith(f"blocks.{layer}.")


def _inside_norm(config: ModelConfig, precision: Precision, device: Device) -> tuple[int, bool]:
    """Numbers that a norm keeps for each of its input's besides its output, and whether that is its input itself.

    Off a GPU rmsnorm has no fused kernel: it keeps the normalised value before the weight; in bf16 that and a copy of
    its input are fp32.
    """
    wide = 2 if is_narrow(precision) else 1
    fused = device == "cuda" or config.norm == "layernorm"
    copies = wide > 1 and (not fused or config.norm_weight != "plain")
    inside = 0 if fused or config.norm_weight == "none" else wide
    return inside + (wide if copies else 0), not copies


def _kept_by_norms(config: ModelConfig, precision: Precision, device: Device) -> int:
    """What the norms of a block keep, and the inputs of its two halves."""
    inside, keeps_input = _inside_norm(config, precision, device)
    before = config.norm_place in ("pre", "sandwich")
    n_before = (1 if config.shared_norm else 2) if before else 0
    n_behind = 0 if config.norm_place == "pre" else 2
    inputs = (1 if config.parallel_residual else 2) if keeps_input or not before else 0
    return config.dim * (inputs + n_before * (1 + inside) + n_behind * (inside + keeps_input))


def _kept_by_attention(config: ModelConfig, seq_len: int, precision: Precision, device: Device) -> int:
    wide = 2 if is_narrow(precision) else 1
    inside, keeps_input = _inside_norm(config, precision, device)
    if config.latent_attention is not None:
        return _kept_by_latent_attention(config, config.latent_attention, seq_len, 1 + inside + keeps_input)
    heads = config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
    kept = 2 * heads  # queries and the output
    if config.attention_softcap is not None:  # keys and values of every head, scores and weights
        kept += 2 * heads + (2 if wide == 1 else 4) * config.n_heads * seq_len
    elif config.positions == "alibi" or config.attention_sinks:  # no fused kernel: the weights
        kept += 2 * heads + config.n_heads * seq_len
    else:  # the sums of the softmax
        kept += 2 * kv + wide * config.n_heads
    if config.qk_norm is not None:
        kept += (inside + keeps_input if config.norm == "rmsnorm" else 2 * wide) * (heads + kv)
    if config.qkv_clip is not None:
        kept += heads + 2 * kv
    return kept


def _kept_by_latent_attention(config: ModelConfig, sizes: LatentAttention, seq_len: int, each: int) -> int:
    """Its values are narrower than its keys, which no fused kernel takes: the weights are kept. each: of a norm."""
    latent = each * ((sizes.q_rank or 0) + sizes.kv_rank) + sizes.rope_dim
    heads = 2 * (sizes.nope_dim + sizes.rope_dim) + 2 * sizes.v_dim
    return latent + config.n_heads * (heads + seq_len)


def _kept_by_mlp(config: ModelConfig, layer: int) -> int:
    moe = config.moe
    if moe is None or not moe.is_in(layer):
        kept = {"relu": 1, "relu2": 2, "silu": 2, "gelu": 2, "gelu_tanh": 2, "clamped_swish": 6}[config.activation]
        return (kept + 2 * config.gated_mlp) * config.ffn_dim
    each = 7 if config.activation == "clamped_swish" else 4
    routed = moe.top_k * (2 * config.dim + each * moe.ffn_dim)
    shared = 4 * moe.shared_ffn_dim + (config.dim if moe.shared_gate else 0)
    return routed + 2 * moe.n_experts + shared


def _backward_elements(config: ModelConfig) -> int:
    """Gradients inside a block while its backward runs, where they are most: in its MLP."""
    return 2 * config.dim + 2 * config.ffn_dim


def _final_elements(config: ModelConfig, precision: Precision, device: Device) -> int:
    """Around the final norm and the loss: what the norm keeps, the hidden states and their gradient."""
    inside, _ = _inside_norm(config, precision, device)
    return config.dim * (3 + inside)


def _logit_bytes(config: ModelConfig, tokens: int, precision: Precision, device: Device) -> int:
    """Of a slice of tokens: logits and their logarithms, with a soft cap its slope too, in bf16 a rounded copy."""
    rows = min(tokens, logit_rows(config.padded_vocab_size, device))
    copies = 2.0 + (config.logit_softcap is not None) + (0.5 if is_narrow(precision) else 0)
    wide = NUMBER_BYTES[PRECISIONS[precision].kept]
    return int(copies * wide * rows * config.padded_vocab_size)


def _keys_of_others(config: ModelConfig, spans: int) -> int:
    """Numbers of keys and values a token of the own stretch that come from those who have the rest of a sequence."""
    heads, keys, values = cache_sizes(config)
    return (spans - 1) * heads * (keys + values)


def _mask_elements(config: ModelConfig, layer: int, seq_len: int, spans: int) -> int:
    """Of a stretch, or where a window hides something: attention keeps the mask as numbers, once for the batch."""
    hides = spans > 1 or (config.sees(layer) != "full" and seq_len > (config.window or seq_len))
    own = config.attention_softcap is not None or config.attention_sinks or config.positions == "alibi"
    return seq_len**2 // spans if hides and not own else 0


def _shared_masks(config: ModelConfig, seq_len: int, spans: int) -> int:
    """Of all layers together: ALiBi's distances for each head, a byte for each pair of a window."""
    if config.positions == "alibi":
        return FP32_BYTES * config.n_heads * seq_len**2 // spans
    masked = any(_mask_elements(config, layer, seq_len, spans) for layer in range(config.n_layers))
    return seq_len**2 // spans if masked else 0


# -- use ---------------------------------------------------------------------------------------------------------------
def serving_memory(config: ModelConfig, dtype: str, *, length: int) -> dict[str, int]:
    """Bytes of the weights in a type of SERVED_BYTES, and of the cache of one sequence of `length` tokens.

    `cache_per_token` is what one more token takes while no window is full. The cache is fp32 beside fp32 weights, else
    bf16.
    """
    element = FP32_BYTES if dtype == "fp32" else BF16_BYTES
    weights = int(SERVED_BYTES[dtype] * n_params(config))
    cache = element * cache_elements(config, length)
    one = element * cache_elements(config, 1)
    return {"weights": weights, "cache_per_token": one, "cache": cache, "total": weights + cache}


def cache_elements(config: ModelConfig, length: int) -> int:
    """Numbers that the cache of a sequence holds; a layer that sees a window holds no more than that."""
    heads, keys, values = cache_sizes(config)
    held = sum(
        length if config.sees(layer) == "full" else min(length, config.window or length)
        for layer in range(config.n_layers)
    )
    return heads * (keys + values) * held


def cache_sizes(config: ModelConfig) -> tuple[int, int, int]:
    """Heads of the cache, and the elements of a key and of a value. Latent attention keeps them unfolded."""
    latent = config.latent_attention
    if latent is None:
        return config.n_kv_heads, config.head_dim, config.head_dim
    return config.n_heads, latent.nope_dim + latent.rope_dim, latent.v_dim
