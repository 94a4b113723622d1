"""Words for the parts of a network, derived from its config: what sets one family apart from another. Light."""

from __future__ import annotations

from launchyard.model.config import ModelConfig, MoE
from launchyard.model.zoo.rules import Rename, Rule

_QK_NORMS = {
    "head": "norm of each q and k head",
    "width": "norm of all q and of all k",
    "each": "norm of each q and k head, each with its weight",
    "unit": "weightless norm of rotated q and k heads",
}
_PLACES = {"pre": "before", "post": "behind", "sandwich": "before and behind", "sum": "behind the sums"}


def describe_config(config: ModelConfig) -> dict[str, list[str]]:
    """Norm, positions, attention, MLP and the two ends of a network, each as a list of short phrases."""
    return {
        "norm": _norm(config),
        "positions": _positions(config),
        "attention": _attention(config),
        "MLP": _mlp(config),
        "embedding and head": _ends(config),
    }


def _norm(config: ModelConfig) -> list[str]:
    name = "RMSNorm" if config.norm == "rmsnorm" else "LayerNorm"
    if config.norm_weight == "none":
        name += " without weight"
    elif config.norm_weight == "plus_one":
        name += " × (1 + weight)"
    if config.norm == "layernorm" and config.norm_weight != "none" and not config.norm_bias:
        name += " without bias"
    found = [name, _PLACES[config.norm_place]]
    if config.parallel_residual:
        found.append(f"attention and MLP side by side, {'one norm' if config.shared_norm else 'two norms'}")
    return found


def _positions(config: ModelConfig) -> list[str]:
    if config.positions == "learned":
        return ["a table"]
    if config.positions == "alibi":
        return ["ALiBi"]
    if not config.rotates_anywhere:
        return ["none"]
    found = ["RoPE"]
    if not all(config.rope_layers):
        found.append(f"on {_share([*config.rope_layers])} layers")
    if config.rope_fraction != 1.0 and config.latent_attention is None:
        found.append(f"on {config.rope_fraction:.0%} of a head")
    if config.rope_scaling is not None:
        found.append(config.rope_scaling.kind)
    if config.window_rope_theta is not None:
        found.append("another base in a window")
    return found


def _attention(config: ModelConfig) -> list[str]:
    found = [_heads(config)]
    biases = "q, k, v, o" if config.attention_bias else "q, k, v" if config.qkv_bias else ""
    if biases:
        found.append(f"bias on {biases}")
    if config.qk_norm is not None:
        found.append(_QK_NORMS[config.qk_norm])
    for kind in ("window", "chunk"):
        if kind in config.layers:
            found.append(f"{_share([sees == kind for sees in config.layers])} layers see a {kind}")
    told = {
        "sinks": config.attention_sinks,
        "soft cap": config.attention_softcap is not None,
        "its own scale": config.attention_scale is not None,
        "q, k, v clipped": config.qkv_clip is not None,
        "scale grows with the distance": config.far_scale is not None,
    }
    return [*found, *(name for name, has in told.items() if has)]


def _heads(config: ModelConfig) -> str:
    if config.latent_attention is not None:
        return "latent"
    if config.n_kv_heads == config.n_heads:
        return "multi-head"
    return "multi-query" if config.n_kv_heads == 1 else "grouped"


def _mlp(config: ModelConfig) -> list[str]:
    found = [f"gated {config.activation}" if config.gated_mlp else config.activation]
    if config.mlp_bias:
        found.append("bias")
    return [*found, *_experts(config.moe)] if config.moe is not None else found


def _experts(moe: MoE) -> list[str]:
    score = moe.score.replace("_", " ") + (" of the chosen" if moe.score_after_choice else "")
    found = [f"experts by {score}"]
    told = {
        "one shared": moe.shared_ffn_dim > 0,
        "in groups": moe.n_groups > 1,
        "bias for the choice": moe.choice_bias,
        "the score multiplies the input": moe.scale_input,
        "some layers dense": moe.first_layer > 0 or moe.every > 1 or bool(moe.dense_layers),
    }
    return [*found, *(name for name, has in told.items() if has)]


def _ends(config: ModelConfig) -> list[str]:
    told = {
        "tied": config.tie_embeddings,
        "norm of the embedding": config.embed_norm,
        "embedding scaled": config.embed_scale is not None,
        "branches scaled": config.residual_scale is not None,
        "logits scaled": config.logit_scale is not None,
        "logits soft-capped": config.logit_softcap is not None,
        "bias of the head": config.head_bias,
        "a narrow table, with projections": config.embed_proj_dim is not None,
    }
    return [name for name, has in told.items() if has]


def _share(which: list[bool]) -> str:
    """`all`, or how many of how many."""
    return "all" if all(which) else f"{sum(which)} of {len(which)}"


def describe_files(rules: tuple[Rule, ...]) -> list[str]:
    """How the tensors of a family's files lie otherwise than ours."""
    renames = [rule for rule in rules if isinstance(rule, Rename)]
    found = [f"fused {_fused(rule)}" for rule in renames if len(rule.names) > 1 and rule.names[0].endswith("weight")]
    told = {
        "neighbours rotate": any(rule.in_pairs for rule in renames),
        "heads rotate backwards": any(rule.backwards for rule in renames),
        "matrices are (in, out)": any(rule.transposed for rule in renames),
        "a tensor for each expert": any("{e}" in rule.theirs and ".experts." in rule.names[0] for rule in renames),
    }
    return [*dict.fromkeys(found), *(name for name, has in told.items() if has)]


def _fused(rule: Rename) -> str:
    parts = [name.split(".")[-2].removesuffix("_proj") for name in rule.names]
    order = "" if rule.layout == "blocks" else f" in {rule.layout}"
    return f"{', '.join(parts)}{order}"
