"""The text models of Llama 4 (Meta 2025): chunks, layers without rotation, and experts of a scaled input. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.zoo.families import llama
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf
from launchyard.model.zoo.hf_config import (
    HFKeys,
    Sees,
    Written,
    need,
    read_layers,
    read_llama_keys,
    shortest_pattern,
    write_layers,
    write_llama_keys,
)
from launchyard.model.zoo.rules import Rename, Rule

_DEFAULTS = {
    "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "intermediate_size_mlp": 16_384, "num_experts_per_tok": 1,
    "num_local_experts": 16, "interleave_moe_layer_step": 1, "use_qk_norm": True, "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192, "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1,
    "attention_bias": False,
}  # fmt: skip
_MLP = "model.layers.{i}.feed_forward"
_EXPERTS = "blocks.{i}.mlp.experts"
_RULES: tuple[Rule, ...] = (
    *(rule for rule in llama.RULES if ".mlp." not in rule.theirs and ".self_attn." not in rule.theirs),
    *(
        Rename(
            f"model.layers.{{i}}.self_attn.{name}_proj.{kind}",
            f"blocks.{{i}}.attention.{name}_proj.{kind}",
            in_pairs=name in ("q", "k"),
        )
        for name in ("q", "k", "v", "o")
        for kind in ("weight", "bias")
    ),
    *(
        Rename(f"{_MLP}.{theirs}{name}_proj.weight", f"blocks.{{i}}.mlp.{ours}{name}_proj.weight")
        for theirs, ours in (("", ""), ("shared_expert.", "shared."))
        for name in ("gate", "up", "down")
    ),
    Rename(f"{_MLP}.router.weight", "blocks.{i}.mlp.router.weight"),
    Rename(
        f"{_MLP}.experts.gate_up_proj",
        (f"{_EXPERTS}.gate_proj.weight", f"{_EXPERTS}.up_proj.weight"),
        transposed=True,
    ),
    Rename(f"{_MLP}.experts.down_proj", f"{_EXPERTS}.down_proj.weight", transposed=True),
)


def _read(hf: HFKeys) -> ModelConfig:
    n_layers = int(need(hf, "num_hidden_layers"))
    rotates = _rotating(hf, n_layers)
    derived: list[Sees] = ["chunk" if turns else "full" for turns in rotates]
    layers = read_layers(hf, derived)
    chunk = hf["attention_chunk_size"]
    hides = chunk is not None and chunk < need(hf, "max_position_embeddings") and set(layers) != {"full"}
    width = int(need(hf, "intermediate_size"))
    return read_llama_keys(
        hf,
        family="llama4_text",
        attention_bias=hf["attention_bias"],
        ffn_dim=need(hf, "intermediate_size_mlp"),
        rope_layers=shortest_pattern(rotates),
        qk_norm="unit" if hf["use_qk_norm"] else None,
        far_scale=need(hf, "attn_scale") if hf["attn_temperature_tuning"] else None,
        far_step=need(hf, "floor_scale"),
        moe=MoE(
            n_experts=need(hf, "num_local_experts"),
            top_k=need(hf, "num_experts_per_tok"),
            ffn_dim=width,
            score="sigmoid",
            scale_input=True,
            shared_ffn_dim=width,
            **_expert_layers(hf, n_layers),
        ),
        **({"layers": layers, "window": chunk} if hides else {}),
    )


def _rotating(hf: HFKeys, n_layers: int) -> list[bool]:
    """A one in `no_rope_layers` is a layer that does rotate."""
    given = hf.get("no_rope_layers")
    if given:
        return [bool(one) for one in given[:n_layers]]
    interval = int(need(hf, "no_rope_layer_interval"))
    return [(layer + 1) % interval != 0 for layer in range(n_layers)]


def _expert_layers(hf: HFKeys, n_layers: int) -> Written:
    """Layers of experts, as every n-th or, where they are listed otherwise, as those that are not."""
    every = int(need(hf, "interleave_moe_layer_step"))
    given = hf.get("moe_layers")
    if given is None or list(given) == list(range(every - 1, n_layers, every)):
        return {"every": every}
    return {"dense_layers": tuple(layer for layer in range(n_layers) if layer not in given)}


def _write(config: ModelConfig) -> Written:
    moe = config.moe
    assert moe is not None
    return {
        **write_llama_keys(config),
        "attention_bias": config.attention_bias,
        "intermediate_size": moe.ffn_dim,
        "intermediate_size_mlp": config.ffn_dim,
        "no_rope_layers": [int(config.rotates(layer)) for layer in range(config.n_layers)],
        "layer_types": write_layers(config),
        "attention_chunk_size": config.window or config.max_seq_len,
        "use_qk_norm": config.qk_norm is not None,
        "attn_temperature_tuning": config.far_scale is not None,
        "attn_scale": _DEFAULTS["attn_scale"] if config.far_scale is None else config.far_scale,
        "floor_scale": config.far_step,
        "num_local_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "interleave_moe_layer_step": moe.every,
        "moe_layers": [layer for layer in range(config.n_layers) if moe.is_in(layer)],
    }


def _settle(found: HFKeys) -> Written:
    return {
        "use_qk_norm": True,
        "intermediate_size": found.get("moe_intermediate_size"),
        "intermediate_size_mlp": found.get("intermediate_size"),
    }


def _more_keys(config: ModelConfig) -> Written:
    if config.moe is None:
        raise ValueError(f"a {config.family} model has experts; give moe")
    return {"interleave_moe_layer_step": config.moe.every}


_GGUF = Gguf(
    "llama4",
    in_pairs=True,
    stretches=("linear", "yarn", "llama3"),
    settle=_settle,
    more_keys=_more_keys,
    only={"attention_bias": False, "qk_norm": "unit"},
)
FAMILIES = (
    Family("llama4_text", "Llama4ForCausalLM", _RULES, _read, _write, _DEFAULTS, gguf=_GGUF, inside=("llama4",)),
)
