"""All families, and what is asked of them by the name of a preset or by a config. Light: plain data, pure functions."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from launchyard.model.config import ModelConfig
from launchyard.model.zoo.families import (
    arcee,
    bloom,
    cohere,
    deepseek,
    ernie4_5,
    exaone4,
    falcon,
    gemma,
    glm,
    gpt2,
    gpt_neox,
    gpt_oss,
    gptj,
    granite,
    internlm3,
    llama,
    llama4,
    mistral,
    mpt,
    nanochat,
    nemotron,
    nope_gpt,
    olmo,
    opt,
    phi,
    qwen2,
    qwen2_moe,
    qwen3,
    seed_oss,
    smollm3,
    stablelm,
    starcoder,
)
from launchyard.model.zoo.family import Family
from launchyard.model.zoo.gguf import Gguf, gguf_rules
from launchyard.model.zoo.gguf_keys import gguf_keys, hf_keys, stretch_tensors
from launchyard.model.zoo.hf_config import HFKeys, Written
from launchyard.model.zoo.rules import Rule, their_shapes
from launchyard.model.zoo.text_part import text_config
from launchyard.model.zoo.unsupported import refuse_unsupported

_MODULES = (
    gpt_neox, llama, mistral, qwen2, qwen2_moe, qwen3, gemma, olmo, cohere, smollm3, exaone4, nemotron, stablelm,
    seed_oss, arcee, gpt_oss, granite, glm, deepseek, llama4, gpt2, starcoder, phi, opt, bloom, mpt, falcon, nope_gpt,
    ernie4_5, gptj, internlm3, nanochat,
)  # fmt: skip
BY_TYPE: dict[str, Family] = {family.model_type: family for module in _MODULES for family in module.FAMILIES}

_OF_IMAGES: dict[str, Family] = {kind: family for family in BY_TYPE.values() for kind in family.inside}


def presets() -> dict[str, ModelConfig]:
    """Every preset by its name, a family after the other, small to large."""
    return {name: config for family in BY_TYPE.values() for name, config in family.presets.items()}


def preset(name: str) -> ModelConfig:
    """ValueError with the nearest names if there is none of this name."""
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown preset {name!r}; {meant}`launch models` lists all {len(known)}")
    return known[name]


def rules(config: ModelConfig) -> tuple[Rule, ...]:
    """The rules that map the keys of this config's family to ours."""
    return BY_TYPE[config.family].rules


def config_from_hf(hf: HFKeys) -> ModelConfig:
    """ModelConfig of a Hugging Face config.json; ValueError if we do not have that kind of model.

    Of a model of images and text it is that of the language model in it.
    """
    refuse_unsupported(hf)
    kind = hf.get("model_type")
    if is_of_images(hf):
        return config_from_hf(text_config(hf, _OF_IMAGES[hf["model_type"]].model_type))
    if kind not in BY_TYPE:
        raise ValueError(f"config.json: model_type is {kind!r}; supported are {', '.join((*BY_TYPE, *_OF_IMAGES))}")
    family = BY_TYPE[kind]
    config = read_keys(family, hf)
    # A class that lacks a key ignores it, so the file contradicts itself; such as partial rotation in Llama's.
    if unread := _unrepresentable(config, read_keys(family, _keys(family, config))):
        raise ValueError(f"config.json: {'; '.join(unread)}, as {family.hf_class} has no key for it; take it out")
    return config


def read_keys(family: Family, hf: HFKeys) -> ModelConfig:
    """The model of a family behind these keys, also with knobs that its class of transformers has no key for."""
    try:
        return family.read({**family.defaults, **hf})
    except ValidationError as error:
        raise ValueError(f"config.json: {_describe_errors(error)}") from error
    except ZeroDivisionError as error:
        raise ValueError("config.json: the number of heads is 0") from error


def is_of_images(hf: HFKeys) -> bool:
    """True for the config.json of a model of images and text; see model/zoo/text_part.py."""
    return hf.get("model_type") in _OF_IMAGES


def config_to_hf(config: ModelConfig) -> Written:
    """The inverse of config_from_hf; ValueError if the format has no place for one of the knobs."""
    family = BY_TYPE[config.family]
    written = _keys(family, config)
    unrepresentable = _unrepresentable(config, read_keys(family, written))
    if unrepresentable:
        raise ValueError(
            f"a {config.family} model with these knobs has no Hugging Face form: {'; '.join(unrepresentable)}"
        )
    return written


def _keys(family: Family, config: ModelConfig) -> Written:
    # Some classes of transformers have a pad_token_id of their own, which the table may not even have a row for.
    kind = {"architectures": [family.hf_class], "model_type": family.model_type, "pad_token_id": None}
    return {**kind, **family.write(config)}


def _unrepresentable(config: ModelConfig, read: ModelConfig) -> list[str]:
    """The knobs that have another value in the other config, with both."""
    return [f"{key} is {value!r}, it can only be {getattr(read, key)!r}"
            for key, value in config if getattr(read, key) != value]  # fmt: skip


def gguf_family(arch: object, metadata: HFKeys) -> Family:
    """The family of a GGUF file's architecture; ValueError if we do not have it."""
    found = [family for family in BY_TYPE.values() if family.gguf is not None and family.gguf.arch == arch]
    if not found:
        known = sorted({family.gguf.arch for family in BY_TYPE.values() if family.gguf is not None})
        raise ValueError(f"general.architecture is {arch!r}; supported are {', '.join(known)}")
    fits = [family for family in found if family.gguf is not None and family.gguf.fits(metadata)]
    return (fits or found)[0]


def check_gguf(config: ModelConfig) -> Gguf:
    """How the model of a config lies in a GGUF file; ValueError if llama.cpp has no such model."""
    facts = BY_TYPE[config.family].gguf
    if facts is None:
        known = ", ".join(kind for kind, family in BY_TYPE.items() if family.gguf is not None)
        raise ValueError(f"{config.family} models have no GGUF form: llama.cpp does not know them; it knows {known}")
    problems = [f"{key} is {getattr(config, key)!r}, it can only be {value!r}"
                for key, value in facts.only.items() if getattr(config, key) != value]  # fmt: skip
    if facts.head_dim_follows and config.head_dim * config.n_heads != config.dim:
        problems.append(f"head_dim is {config.head_dim}, it can only be dim / n_heads")
    if lack := facts.lack(config):
        problems.append(lack)
    stretch = config.rope_scaling
    if stretch is not None and stretch.kind not in facts.stretches:
        problems.append(f"rope_scaling is of kind {stretch.kind}, it can only be {' or '.join(facts.stretches)}")
    if not problems:
        read = _read_gguf_keys(config, facts)
        problems = _differences(read.model_copy(update={"family": config.family}), _without_idle_knobs(config))
    if problems:
        raise ValueError(f"a {config.family} model with these knobs has no GGUF form: {'; '.join(problems)}")
    return facts


def _read_gguf_keys(config: ModelConfig, facts: Gguf) -> ModelConfig:
    """What a file of this config would be read as."""
    metadata = gguf_keys(config, facts)
    stretches = stretch_tensors(config)
    names = frozenset(their_shapes(gguf_rules(config, facts), config)) | stretches.keys()
    family = gguf_family(facts.arch, metadata)
    assert family.gguf is not None
    keys = hf_keys(metadata, family.gguf, names, stretches.__getitem__)
    try:
        return read_keys(family, keys)
    except ValueError as error:
        reason = str(error).removeprefix("config.json: ")
        raise ValueError(f"a {config.family} model with these knobs has no GGUF form: {reason}") from error


def _without_idle_knobs(config: ModelConfig) -> ModelConfig:
    """Without the half of yarn's two weights that counts only beside the other one."""
    stretch = config.rope_scaling
    if stretch is None or stretch.mscale is None or stretch.mscale_all_dim is not None:
        return config
    return config.model_copy(update={"rope_scaling": stretch.model_copy(update={"mscale": None})})


def _differences(read: BaseModel, config: BaseModel, prefix: str = "") -> list[str]:
    """The knobs that differ, with what they can only be; those of a group by the name of the group and theirs."""
    found = []
    for key, value in config:
        other = getattr(read, key)
        if isinstance(value, BaseModel) and isinstance(other, BaseModel):
            found += _differences(other, value, f"{prefix}{key}.")
        elif not _same_in_fp32(value, other):
            found.append(f"{prefix}{key} is {value!r}, it can only be {other!r}")
    return found


def _same_in_fp32(one: object, other: object) -> bool:
    """Equality of knobs whose numbers a file keeps in fp32."""
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=2e-7)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same_in_fp32, one, other))
    return one == other


def make_config(*, preset: str | None, fields: Mapping[str, object], hf: HFKeys | None) -> ModelConfig:
    """The config of a recipe: `fields` over the preset, or over the weights' own config, or alone.

    Values that the base derived from its own sizes (head_dim from dim and n_heads, padded_vocab_size from vocab_size …)
    are derived anew when those sizes are set and they are not. ValueError names every field that is wrong.
    """
    overrides = {key: value for key, value in fields.items() if value is not None}
    base = _base(preset, hf)
    raw = overrides if base is None else {**_base_knobs(base, overrides), **overrides}
    try:
        config = ModelConfig.model_validate(raw)
    except ValidationError as error:
        lacks = base is None and any(problem["type"] == "missing" for problem in error.errors())
        hint = "; a model needs a preset, weights to start from, or all of its knobs" if lacks else ""
        raise ValueError(f"model: {_describe_errors(error)}{hint}") from error
    if config.family not in BY_TYPE:
        near = difflib.get_close_matches(config.family, BY_TYPE, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"model: family: unknown {config.family!r}; {meant}There are {', '.join(BY_TYPE)}")
    return config


def _base(name: str | None, hf: HFKeys | None) -> ModelConfig | None:
    if name is not None:
        return preset(name)
    return None if hf is None else config_from_hf(hf)


def _base_knobs(base: ModelConfig, overrides: Mapping[str, object]) -> Written:
    """The base's knobs, without those that followed from one that is now given."""
    raw = base.model_dump()
    changed = {key for key, value in overrides.items() if key in raw and value != raw[key]}
    if changed & {"dim", "n_heads"} and base.head_dim * base.n_heads == base.dim:
        del raw["head_dim"]
    if "n_heads" in changed and base.n_kv_heads == base.n_heads:
        del raw["n_kv_heads"]
    if "vocab_size" in changed:
        del raw["padded_vocab_size"]
    if "dim" in changed and isinstance(overrides["dim"], int) and base.ffn_dim == 4 * base.dim:
        raw["ffn_dim"] = 4 * overrides["dim"]
    return raw


def _describe_errors(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        parts.append(f"{where}: {problem['msg']}" if where else problem["msg"].removeprefix("Value error, "))
    return "; ".join(parts)
