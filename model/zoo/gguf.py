"""llama.cpp's names for the tensors and sizes of a model, for all families alike. Light; reads and writes no file.

A family says in a `Gguf` where its files differ from ours: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from launchyard.model.config import ModelConfig
from launchyard.model.layout import TensorShape, block_shapes
from launchyard.model.zoo.hf_config import HFKeys, Written
from launchyard.model.zoo.rules import LatentHeads, Rename, Rule

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
_FUSED = {
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"): "attn_qkv",
    ("mlp.gate_proj", "mlp.up_proj"): "ffn_up",
}


@dataclass(frozen=True)
class Gguf:
    """Where a family's files differ from the names and the layout that are common to all.

    fits: of the keys of a file, if it is one of this family, where several have the architecture.
    settle: of the keys of config.json that a file gives, more of them, or others in their place. only: knobs that have
    one value in llama.cpp's code. lack: why that code does not open a model, None if it does. reads_window: it hides
    what lies before a window, of the layers that the file names.
    """

    arch: str
    in_pairs: bool = False  # the rotated rows of q and k lie pair by pair
    plus_one: bool = False  # norms are stored as what they multiply by, 1 + weight
    fused_qkv: bool = False
    fused_gate: bool = False  # ffn_up holds gate and up
    rms_eps: bool = False  # the key of the norm's epsilon is that of RMSNorm, whatever the norm
    reads_window: bool = False
    head_dim_follows: bool = False  # it must be dim / n_heads
    stretches: tuple[str, ...] = ("linear", "yarn")  # kinds of rope_scaling that it has
    parts: Mapping[str, str] = field(default_factory=dict)  # other names of parts
    two_norm_parts: Mapping[str, str] = field(default_factory=dict)  # of a parallel residual with two norms
    fits: Callable[[HFKeys], bool] = lambda metadata: True
    settle: Callable[[HFKeys], Written] = lambda found: {}
    more_keys: Callable[[ModelConfig], Written] = lambda config: {}  # of the file, without the arch
    only: Mapping[str, object] = field(default_factory=dict)
    lack: Callable[[ModelConfig], str | None] = lambda config: None


def gguf_rules(config: ModelConfig, facts: Gguf, names: frozenset[str] | None = None) -> tuple[Rule, ...]:
    """The rules between the tensors of such a file and ours; as those of Hugging Face, both ways.

    names: those of a file, for what was stored in another way once; default: as files are written now.
    """
    parts = {**_PARTS, **facts.parts}
    if config.parallel_residual and not config.shared_norm:
        parts |= facts.two_norm_parts
    rules: list[Rule] = [Rename(theirs, ours, plus=_plus(facts, ours)) for ours, theirs in _OUTSIDE.items()]
    known = dict.fromkeys(name for layer in range(config.n_layers) for name in block_shapes(config, layer))
    fused = {name: group for group in _fused(facts, names) for name in group}
    for name in known:
        part, _, kind = name.rpartition(".")
        group = fused.get(part)
        if group is not None:
            if part == group[-1]:  # a layer without gate_proj has ffn_up all the same
                ours = tuple(f"blocks.{{i}}.{one}.{kind}" for one in group)
                rules.append(Rename(f"blk.{{i}}.{_FUSED[group]}.{kind}", ours))
        elif part == "attention.kv_b_proj" and not (names and "blk.0.attn_kv_b.weight" in names):
            rules += [LatentHeads(f"blk.{{i}}.attn_{kv}_b.weight", f"blocks.{{i}}.{name}", kv) for kv in ("k", "v")]
        else:
            theirs = _WHOLE_NAMES.get(name) or f"{parts[part]}.{kind}"
            rules.append(
                Rename(f"blk.{{i}}.{theirs}", f"blocks.{{i}}.{name}", in_pairs=facts.in_pairs, plus=_plus(facts, name))
            )
    return tuple(rules)


def _fused(facts: Gguf, names: frozenset[str] | None) -> list[tuple[str, ...]]:
    """Groups of ours that are one of theirs; q, k and v of any family may be, or not, as a file has it."""
    qkv, gate_up = _FUSED
    has_qkv = facts.fused_qkv if names is None else "blk.0.attn_qkv.weight" in names
    return [*([qkv] if has_qkv else []), *([gate_up] if facts.fused_gate else [])]


def plain_shape(shape: TensorShape) -> TensorShape:
    """Without first axes of 1, as llama.cpp's files have it."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _plus(facts: Gguf, name: str) -> float:
    return -1.0 if facts.plus_one and name.endswith("norm.weight") else 0.0
