"""Kinds of model that we know of and do not have: what part is missing, by model_type. Light: plain data."""

from __future__ import annotations

from collections.abc import Mapping

from launchyard.model.zoo.hf_config import HFKeys

_PARTS: dict[str, tuple[str, ...]] = {
    "layers of gated delta nets (linear attention)": (
        "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe", "kimi_linear", "olmo_hybrid",
    ),
    "embeddings of each layer, and keys and values that layers share": (
        "gemma3n_text", "gemma3n", "gemma4_text", "gemma4",
    ),
    "layers of short convolutions": ("lfm2", "lfm2_moe"),
    "layers of Mamba (state spaces)": (
        "mamba", "mamba2", "falcon_mamba", "falcon_h1", "bamba", "jamba", "zamba2", "nemotron_h", "granitemoehybrid",
    ),
    "layers of linear recurrence": ("rwkv", "recurrent_gemma", "xlstm", "minimax"),
    "sparse attention, whose keys an indexer chooses": ("deepseek_v32", "deepseek_v4", "glm_moe_dsa"),
    "an encoder": ("t5", "t5gemma", "bart", "bert", "roberta", "modernbert"),
    "a part that sees images (a folder of the text model alone is read, if its own model_type is supported)": (
        "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v",
    ),
}  # fmt: skip
MISSING: Mapping[str, str] = {kind: part for part, kinds in _PARTS.items() for kind in kinds}


def refuse_unsupported(hf: HFKeys) -> None:
    """ValueError that names what of a config.json we do not have: a part of the network, or a way to pack weights."""
    kind = hf.get("model_type")
    missing = MISSING.get(str(kind))
    if missing is not None:
        raise ValueError(f"config.json: model_type is {kind!r}, which is not supported: it has {missing}")
    facts = hf.get("quantization_config")
    if facts:
        _refuse_packed(facts)


# Ways to pack weights that are read, by their values: quant_method, and its formats if it has several.
_READ: Mapping[str, tuple[str, ...]] = {
    "fp8": (),
    "fbgemm_fp8": (),
    "mxfp4": (),
    "compressed-tensors": ("float-quantized", "naive-quantized", "int-quantized"),
}


def _refuse_packed(facts: object) -> None:
    method = facts.get("quant_method") if isinstance(facts, Mapping) else facts
    formats = _READ.get(str(method))
    packing = facts.get("format") if isinstance(facts, Mapping) else None
    if formats is not None and (not formats or packing in formats):
        return
    named = f"{method!r}" if not formats else f"{method!r} in the format {packing!r}"
    raise ValueError(
        f"config.json: quantization_config is {named}, which is not read; read are {', '.join(_READ)}. Take the "
        "folder of the weights that were not quantised, or open this one with transformers, call "
        "model.dequantize() and save_pretrained()"
    )
