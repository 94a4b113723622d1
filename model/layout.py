"""The parameters of a config, trained or frozen: our names and full shapes, in forward order.

The only source of that list: first weights, optimizer, checkpoints and costs follow it. Light; knows no file format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from launchyard.model.adapt.forms import form_of, has_form, packed_bytes, scales_bytes, scales_name
from launchyard.model.adapt.targets import prompted, scaled, updates
from launchyard.model.adapter import Adapter
from launchyard.model.config import LatentAttention, ModelConfig, MoE

TensorShape = tuple[int, ...]
MAGNITUDE = ".magnitude"  # instead of `.weight`, the name of the lengths of its rows in DoRA
AVERAGE = "ema"  # among the moments of a parameter in a checkpoint: its moving average


@dataclass(frozen=True)
class Parameter:
    """A frozen one has no gradient and no moments, and is not saved: it keeps its first value."""

    shape: TensorShape
    trained: bool = True
    is_bytes: bool = False  # codes or scales of a frozen matrix, see model/adapt/forms.py


def parameters(config: ModelConfig, adapter: Adapter | None = None) -> dict[str, Parameter]:
    """State-dict name -> shape, and whether it trains, of every parameter; those of an adapter behind the model's.

    A tied head is left out: it is `embed.weight`. ValueError for a pattern that no name matches, and if none is left.
    """
    adapter = adapter or Adapter()
    shapes = parameter_shapes(config)
    added = adapter_shapes(config, adapter)
    frozen = (*adapter.frozen, *_first_layers(config, adapter))
    for key, patterns in (("frozen", frozen), ("trained", adapter.trained)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in shapes):
                names = ", ".join(list(shapes)[:4])
                raise ValueError(f"{key}: no parameter of this model matches {pattern}; its names are {names}, …")

    def trains(name: str) -> bool:
        asked = _by_kind(name, adapter) or any(fnmatchcase(name, pattern) for pattern in adapter.trained)
        return asked and _learns(name) and not any(fnmatchcase(name, pattern) for pattern in frozen)

    found = {name: Parameter(shape, trains(name)) for name, shape in shapes.items()}
    for name in ("embed.weight", "lm_head.weight"):
        if adapter.tokens and name in found and found[name].trained:
            raise ValueError(f"adapter.tokens: {name} trains whole; leave it out of trained, or tokens out")
    found |= {name: Parameter(shape) for name, shape in added.items()}
    if not any(parameter.trained for parameter in found.values()):
        why = f"frozen: {', '.join(frozen)} leave" if frozen else f"adapter.kind: {adapter.kind} leaves"
        raise ValueError(f"{why} no parameter that trains; freeze fewer" if frozen else f"{why} none that trains")
    return _coded(found, adapter)


def _coded(plain: dict[str, Parameter], adapter: Adapter | None) -> dict[str, Parameter]:
    """The same with codes and scales in the place of each frozen matrix that the adapter quantises."""
    form = form_of(adapter)
    found: dict[str, Parameter] = {}
    for name, parameter in plain.items():
        if form is None or parameter.trained or not has_form(name):
            found[name] = parameter
            continue
        *lead, columns = parameter.shape
        found[name] = Parameter((*lead, packed_bytes(form, columns)), trained=False, is_bytes=True)
        found[scales_name(name)] = Parameter((*lead, scales_bytes(form, columns)), trained=False, is_bytes=True)
    if form is not None and found.keys() == plain.keys():
        raise ValueError(f"quantize: {form} is for frozen projections, and no projection is frozen; leave quantize out")
    return found


def _by_kind(name: str, adapter: Adapter) -> bool:
    """True for a parameter of the model that trains with a kind of adapter."""
    if adapter.kind == "none":
        return True
    if adapter.kind == "llama-adapter-v2":
        return name.rpartition(".")[0].endswith("norm")
    return adapter.kind == "bitfit" and name.endswith("bias")


def _first_layers(config: ModelConfig, adapter: Adapter) -> tuple[str, ...]:
    """Patterns of the table and of the blocks that do not train."""
    if not adapter.frozen_layers:
        return ()
    if adapter.frozen_layers > config.n_layers:
        raise ValueError(f"frozen_layers: {adapter.frozen_layers}, and the model has {config.n_layers}")
    return ("embed.weight", *(f"blocks.{layer}.*" for layer in range(adapter.frozen_layers)))


def adapter_shapes(config: ModelConfig, adapter: Adapter) -> dict[str, TensorShape]:
    """Name -> shape of what an adapter adds to a model."""
    shapes = parameter_shapes(config)
    found: dict[str, TensorShape] = {}
    for name, update in updates(shapes, adapter).items():
        rows, columns = shapes.get(f"{name}.weight") or shapes["embed.weight"]
        if name == "embed" and adapter.kind == "dora":
            raise ValueError("adapter.targets: a table has no magnitudes; leave embed out, or use kind lora")
        is_table = name == "embed"  # a lookup: A is what the ids choose from
        found[f"{name}.lora_a"] = (update.rank, rows if is_table else columns)
        found[f"{name}.lora_b"] = (columns if is_table else rows, update.rank)
        if adapter.kind == "dora":
            found[f"{name}{MAGNITUDE}"] = (rows,)
    found |= _token_shapes(config, adapter, [*found])
    for layer in prompted(config.n_layers, adapter):
        found[f"blocks.{layer}.attention.prompt"] = (adapter.prompt_tokens, config.dim)
        found[f"blocks.{layer}.attention.gate"] = (config.n_heads,)
    for name in scaled(shapes, adapter):
        rows, _ = shapes.get(f"{name}.weight") or shapes["embed.weight"]
        found[f"{name}.out_scale"] = found[f"{name}.out_bias"] = (rows,)
    return found


def _token_shapes(config: ModelConfig, adapter: Adapter, updated: list[str]) -> dict[str, TensorShape]:
    """What is added to the rows of tokens that train alone; a tied head has the rows of the table."""
    if not adapter.tokens:
        return {}
    if max(adapter.tokens) >= config.padded_vocab_size:
        raise ValueError(f"adapter.tokens: {max(adapter.tokens)}, and the table has {config.padded_vocab_size} rows")
    if {"embed.lora_a", "lm_head.lora_a"} & {*updated} or "lm_head" in scaled(parameter_shapes(config), adapter):
        raise ValueError("adapter.tokens: leave embed and lm_head out of the targets, or leave tokens out")
    shape = (len(adapter.tokens), config.embed_dim)
    return {f"{name}.tokens": shape for name in ("embed", *(() if config.tie_embeddings else ("lm_head",)))}


def _learns(name: str) -> bool:
    """False for what no gradient reaches: a bias that counts for the choice of experts alone."""
    return not name.endswith("choice_bias")


def stays_fp32(name: str) -> bool:
    """True for what has so many digits that bf16 would change what it is for, whatever type the other weights have."""
    return name.endswith("choice_bias")


def frozen_names(config: ModelConfig, adapter: Adapter | None) -> tuple[str, ...]:
    return tuple(name for name, parameter in parameters(config, adapter).items() if not parameter.trained)


def is_norm(name: str) -> bool:
    """True for the weight of a norm."""
    return name.endswith("norm.weight")


def is_vector(name: str) -> bool:
    """True for a parameter that is no matrix of a product or table: it decays in no optimizer."""
    return is_norm(name) or name.rpartition(".")[2] not in ("weight", "lora_a", "lora_b", "prompt", "tokens")


def parameter_shapes(config: ModelConfig) -> dict[str, TensorShape]:
    """The names and shapes alone, for uses other than training."""
    shapes: dict[str, TensorShape] = {"embed.weight": (config.padded_vocab_size, config.embed_dim)}
    if config.embed_proj_dim is not None:
        shapes["embed_proj.weight"] = (config.dim, config.embed_proj_dim)
    if config.positions == "learned":
        shapes["positions.weight"] = (config.max_seq_len + config.learned_offset, config.dim)
    if config.embed_norm:
        shapes.update(_norm("embed_norm", config))
    for layer in range(config.n_layers):
        shapes.update((f"blocks.{layer}.{name}", shape) for name, shape in block_shapes(config, layer).items())
    if config.has_final_norm:
        shapes.update(_norm("norm", config))
    if config.embed_proj_dim is not None:
        shapes["head_proj.weight"] = (config.embed_proj_dim, config.dim)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.padded_vocab_size, config.embed_dim)
    if config.head_bias:
        shapes["lm_head.bias"] = (config.padded_vocab_size,)
    return shapes


def block_shapes(config: ModelConfig, layer: int) -> dict[str, TensorShape]:
    """The same for one block, names without their `blocks.N.`."""
    before = config.norm_place in ("pre", "sandwich")
    behind = config.norm_place != "pre"
    shapes: dict[str, TensorShape] = {}
    if before:
        shapes.update(_norm("attention_norm", config))
    shapes.update((f"attention.{name}", shape) for name, shape in _attention(config, layer))
    if behind:
        shapes.update(_norm("attention_out_norm", config))
    if before and not config.shared_norm:
        shapes.update(_norm("mlp_norm", config))
    inner = _experts(config, config.moe) if config.moe is not None and config.moe.is_in(layer) else _mlp(config)
    shapes.update((f"mlp.{name}", shape) for name, shape in inner)
    if behind:
        shapes.update(_norm("mlp_out_norm", config))
    return shapes


def _attention(config: ModelConfig, layer: int) -> Iterator[tuple[str, TensorShape]]:
    if config.latent_attention is not None:
        yield from _latent_attention(config, config.latent_attention)
        return
    heads = config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
    qkv_bias = config.attention_bias or config.qkv_bias
    yield from _linear("q_proj", heads, config.dim, bias=qkv_bias)
    yield from _linear("k_proj", kv, config.dim, bias=qkv_bias)
    yield from _linear("v_proj", kv, config.dim, bias=qkv_bias)
    yield from _linear("o_proj", config.dim, heads, bias=config.attention_bias)
    if config.qk_norm not in (None, "unit") and config.norm_weight != "none":
        size = config.head_dim
        for name, count in (("q_norm", config.n_heads), ("k_norm", config.n_kv_heads)):
            yield f"{name}.weight", {"head": (size,), "width": (count * size,), "each": (count, size)}[config.qk_norm]
    if config.attention_sinks:
        yield "sinks", (config.n_heads,)


def _latent_attention(config: ModelConfig, sizes: LatentAttention) -> Iterator[tuple[str, TensorShape]]:
    queries = config.n_heads * (sizes.nope_dim + sizes.rope_dim)
    if sizes.q_rank is None:
        yield "q_proj.weight", (queries, config.dim)
    else:
        yield from _linear("q_a_proj", sizes.q_rank, config.dim, bias=config.attention_bias)
        yield "q_a_norm.weight", (sizes.q_rank,)
        yield "q_b_proj.weight", (queries, sizes.q_rank)
    yield from _linear("kv_a_proj", sizes.kv_rank + sizes.rope_dim, config.dim, bias=config.attention_bias)
    yield "kv_a_norm.weight", (sizes.kv_rank,)
    yield "kv_b_proj.weight", (config.n_heads * (sizes.nope_dim + sizes.v_dim), sizes.kv_rank)
    yield from _linear("o_proj", config.dim, config.n_heads * sizes.v_dim, bias=config.attention_bias)


def _mlp(config: ModelConfig) -> Iterator[tuple[str, TensorShape]]:
    if config.gated_mlp:
        yield from _linear("gate_proj", config.ffn_dim, config.dim, bias=config.mlp_bias)
    yield from _linear("up_proj", config.ffn_dim, config.dim, bias=config.mlp_bias)
    yield from _linear("down_proj", config.dim, config.ffn_dim, bias=config.mlp_bias)


def _experts(config: ModelConfig, moe: MoE) -> Iterator[tuple[str, TensorShape]]:
    """Of all experts in one tensor; its first axis numbers them."""
    yield from _linear("router", moe.n_experts, config.dim, bias=moe.bias)
    if moe.choice_bias:
        yield "choice_bias", (moe.n_experts,)
    sizes = {"gate_proj": (moe.ffn_dim, config.dim), "up_proj": (moe.ffn_dim, config.dim)}
    sizes["down_proj"] = (config.dim, moe.ffn_dim)
    for name, (rows, columns) in sizes.items():
        yield f"experts.{name}.weight", (moe.n_experts, rows, columns)
        if moe.bias:
            yield f"experts.{name}.bias", (moe.n_experts, rows)
    if moe.shared_ffn_dim:
        yield "shared.gate_proj.weight", (moe.shared_ffn_dim, config.dim)
        yield "shared.up_proj.weight", (moe.shared_ffn_dim, config.dim)
        yield "shared.down_proj.weight", (config.dim, moe.shared_ffn_dim)
    if moe.shared_gate:
        yield "shared_gate.weight", (1, config.dim)


def _norm(name: str, config: ModelConfig) -> Iterator[tuple[str, TensorShape]]:
    if config.norm_weight != "none":
        yield f"{name}.weight", (config.dim,)
    if config.norm_bias:
        yield f"{name}.bias", (config.dim,)


def _linear(name: str, rows: int, columns: int, *, bias: bool) -> Iterator[tuple[str, TensorShape]]:
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
