"""llama.cpp's names for the tensors and sizes of a model, for all families alike. Light; reads no file.

A family says in a `Gguf` where its files differ from ours: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launchyard.model.config import ModelConfig
from launchyard.model.layout import block_shapes
from launchyard.model.zoo.hf_config import HFKeys, Written, need
from launchyard.model.zoo.rules import Rename, Rule

# HFKeys after the architecture's name -> those of config.json, as Llama's kin have them.
LLAMA_KEYS: Mapping[str, str] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_OUTSIDE = {
    "embed.weight": "token_embd.weight",
    "positions.weight": "position_embd.weight",
    "embed_norm.weight": "token_embd_norm.weight",
    "embed_norm.bias": "token_embd_norm.bias",
    "norm.weight": "output_norm.weight",
    "norm.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
    "lm_head.bias": "output.bias",
}
_PARTS = {
    "attention_norm": "attn_norm",
    "attention_out_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_out_norm": "post_ffw_norm",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.q_a_proj": "attn_q_a",
    "attention.q_a_norm": "attn_q_a_norm",
    "attention.q_b_proj": "attn_q_b",
    "attention.kv_a_proj": "attn_kv_a_mqa",
    "attention.kv_a_norm": "attn_kv_a_norm",
    "attention.kv_b_proj": "attn_kv_b",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared.gate_proj": "ffn_gate_shexp",
    "mlp.shared.up_proj": "ffn_up_shexp",
    "mlp.shared.down_proj": "ffn_down_shexp",
    "mlp.shared_gate": "ffn_gate_inp_shexp",
}
_WHOLE_NAMES = {"attention.sinks": "attn_sinks.weight", "mlp.choice_bias": "exp_probs_b.bias"}


@dataclass(frozen=True)
class Gguf:
    """Where a family's files differ from the names and the layout that are common to all."""

    arch: str
    in_pairs: bool = False  # the rotated rows of q and k lie pair by pair
    plus_one: bool = False  # norms are stored as what they multiply by, 1 + weight
    fused_qkv: bool = False
    fused_gate: bool = False  # ffn_up holds gate and up
    parts: Mapping[str, str] = field(default_factory=dict)  # other names of parts
    keys: Mapping[str, str] = field(default_factory=lambda: LLAMA_KEYS)
    fixed: HFKeys = field(default_factory=dict)  # of config.json, where no key of the file says it


def gguf_rules(config: ModelConfig, facts: Gguf) -> tuple[Rule, ...]:
    """The rules between the tensors of such a file and ours; as those of Hugging Face, both ways."""
    names = {**_PARTS, **facts.parts}
    rules: list[Rule] = [Rename(theirs, ours, plus=_plus(facts, ours)) for ours, theirs in _OUTSIDE.items()]
    known = dict.fromkeys(name for layer in range(config.n_layers) for name in block_shapes(config, layer))
    fused = {name: group for group in _fused(facts) for name in group}
    for name in known:
        part, _, kind = name.rpartition(".")
        group = fused.get(part)
        if group is not None:
            if part == group[0]:
                ours = tuple(f"blocks.{{i}}.{one}.{kind}" for one in group)
                rules.append(Rename(f"blk.{{i}}.{_FUSED[group]}.{kind}", ours))
            continue
        theirs = _WHOLE_NAMES.get(name) or f"{names[part]}.{kind}"
        ours_name = f"blocks.{{i}}.{name}"
        in_pairs = facts.in_pairs and not part.endswith("norm")
        rules.append(Rename(f"blk.{{i}}.{theirs}", ours_name, in_pairs=in_pairs, plus=_plus(facts, name)))
    return tuple(rules)


_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
_FUSED = {_QKV: "attn_qkv", _GATE_UP: "ffn_up"}


def _fused(facts: Gguf) -> list[tuple[str, ...]]:
    return [*([_QKV] if facts.fused_qkv else []), *([_GATE_UP] if facts.fused_gate else [])]


def _plus(facts: Gguf, name: str) -> float:
    return -1.0 if facts.plus_one and name.endswith("norm.weight") else 0.0


def hf_keys(metadata: HFKeys, facts: Gguf, *, tied: bool) -> Written:
    """The keys of config.json behind those of a file; ValueError names one that is missing or not supported."""
    found: Written = {**facts.fixed, "tie_word_embeddings": tied}
    for theirs, ours in facts.keys.items():
        value = metadata.get(f"{facts.arch}.{theirs}")
        if value is not None:
            found[ours] = _alike(f"{facts.arch}.{theirs}", value)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in found and tokens is not None:
        found["vocab_size"] = len(tokens)
    return {**found, **_rope(metadata, facts, found)}


def _alike(key: str, value: object) -> object:
    """A number that a file may give layer by layer; ValueError if the layers differ."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{key} differs from layer to layer ({value[:4]} …), which is not supported")
    return value[0]


def _rope(metadata: HFKeys, facts: Gguf, found: HFKeys) -> Written:
    """The keys of rotation that config.json has in another form."""
    keys: Written = {}
    turned = metadata.get(f"{facts.arch}.rope.dimension_count")
    if turned is not None:
        head = found.get("head_dim") or need(found, "hidden_size") // need(found, "num_attention_heads")
        if turned != head:
            keys["partial_rotary_factor"] = turned / head
    kind = metadata.get(f"{facts.arch}.rope.scaling.type")
    if kind not in (None, "none"):
        scaling = {"rope_type": kind, "factor": metadata.get(f"{facts.arch}.rope.scaling.factor")}
        original = metadata.get(f"{facts.arch}.rope.scaling.original_context_length")
        if original is not None:
            scaling["original_max_position_embeddings"] = original
        keys["rope_scaling"] = scaling
    return keys
