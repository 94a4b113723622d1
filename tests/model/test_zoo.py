"""Presets, the reading of configs of both generations of transformers, and the config that a recipe makes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from launchyard.model.config import ModelConfig, RopeScaling
from launchyard.model.cost import n_params, n_params_embedding
from launchyard.model.zoo import config_from_hf, config_to_hf, make_config, preset, presets, rules
from launchyard.model.zoo.rules import their_shapes
from tests.support.architectures import PARAMETERS

# As transformers 4 and 5 write them.
NEOX_4 = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 12, "num_hidden_layers": 12,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
NEOX_5 = {key: value for key, value in NEOX_4.items() if key not in ("rotary_emb_base", "rotary_pct")} | {
    "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 10000, "rope_type": "default"},
    "attention_bias": True,
}
SCALING = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192}
LLAMA_4 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "eos_token_id": [128001, 128008],
    "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "mlp_bias": False,
    "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {**SCALING, "rope_type": "llama3"}, "tie_word_embeddings": True, "vocab_size": 128256,
}  # fmt: skip
LLAMA_5 = {key: value for key, value in LLAMA_4.items() if key not in ("rope_theta", "rope_scaling")} | {
    "rope_parameters": {**SCALING, "rope_type": "llama3", "rope_theta": 500000.0}
}

QWEN2_4 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643,
    "hidden_act": "silu", "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
    "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
    "tie_word_embeddings": True, "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN2_5 = {key: value for key, value in QWEN2_4.items() if key != "rope_theta"} | {
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "layer_types": ["full_attention"] * 24,
    "sliding_window": None,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert n_params(preset(name)) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "stored"), [("starcoder2-15b", 15_957_889_024), ("falcon-7b", 7_217_189_760)]
)  # fmt: skip
def test_files_that_hold_a_head_beside_the_table_count_it_twice(name: str, stored: int) -> None:
    """These two are published with lm_head.weight: one table more than their class, which ties them, has."""
    config = preset(name)
    assert config.tie_embeddings
    assert n_params(config) + n_params_embedding(config) == stored
    assert n_params(config.model_copy(update={"tie_embeddings": False})) == stored


@pytest.mark.parametrize("given", [{"partial_rotary_factor": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}])
@pytest.mark.parametrize("theirs", [LLAMA_4, QWEN2_4])
def test_a_key_that_their_class_ignores_is_refused(theirs: dict[str, Any], given: dict[str, Any]) -> None:
    """Their classes turn whole heads and so would give other logits than a model that heeds it."""
    without = {key: value for key, value in theirs.items() if key != "rope_scaling"}
    with pytest.raises(ValueError, match=r"rope_fraction is 0\.5, it can only be 1\.0, as \w+ForCausalLM has no key"):
        config_from_hf({**without, **given})


def test_every_preset_is_counted_and_has_a_place_for_every_key() -> None:
    assert presets().keys() == PARAMETERS.keys()
    for config in presets().values():
        shapes = their_shapes(rules(config), config)
        assert sum(map(math.prod, shapes.values())) == n_params(config)


@pytest.mark.parametrize(("hf", "name"), [(NEOX_4, "pythia-160m"), (NEOX_5, "pythia-160m")])
def test_neox_of_both_generations(hf: dict[str, Any], name: str) -> None:
    assert config_from_hf(hf) == preset(name).model_copy(update={"vocab_size": 50304})


@pytest.mark.parametrize("hf", [LLAMA_4, LLAMA_5])
def test_llama_of_both_generations(hf: dict[str, Any]) -> None:
    assert config_from_hf(hf) == preset("llama-3.2-1b")


@pytest.mark.parametrize("hf", [QWEN2_4, QWEN2_5])
def test_qwen2_of_both_generations(hf: dict[str, Any]) -> None:
    assert config_from_hf(hf) == preset("qwen2.5-0.5b").model_copy(update={"vocab_size": 151936})


SLIDING = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20}


@pytest.mark.parametrize(
    ("change", "first", "last"),
    [
        (SLIDING, 20, 23),
        (SLIDING | {"max_window_layers": 0}, 0, 23),
        (SLIDING | {"num_hidden_layers": 30, "max_window_layers": None}, 28, 29),
        (SLIDING | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"] * 21}, 0, 2),
    ],
)
def test_which_layers_of_qwen2_see_a_window(change: dict[str, Any], first: int, last: int) -> None:
    config = config_from_hf(QWEN2_4 | change)
    windowed = [layer for layer in range(config.n_layers) if config.sees(layer) == "window"]
    assert windowed == list(range(first, last + 1)) and config.window == 4096
    assert config_from_hf(config_to_hf(config)) == config


@pytest.mark.parametrize(
    "change",
    [
        SLIDING | {"max_window_layers": 24},  # no layer is above it
        SLIDING | {"sliding_window": 32768},  # wider than any sequence
        SLIDING | {"sliding_window": None},
        SLIDING | {"layer_types": ["full_attention"] * 24},
        SLIDING | {"use_sliding_window": False},
    ],
)
def test_a_window_that_hides_nothing_is_none(change: dict[str, Any]) -> None:
    assert config_from_hf(QWEN2_4 | change) == config_from_hf(QWEN2_4)


def test_qwen2_has_key_heads_of_its_own_where_the_key_is_absent() -> None:
    bare = {key: value for key, value in QWEN2_4.items() if key != "num_key_value_heads"}
    assert config_from_hf(bare | {"hidden_size": 1024, "num_attention_heads": 64}).n_kv_heads == 32
    assert config_from_hf(bare | {"num_key_value_heads": None}).n_kv_heads == 14


def test_the_oldest_spelling_of_scaling_and_a_missing_head_count() -> None:
    old = {**LLAMA_4, "rope_scaling": {**SCALING, "type": "llama3"}, "num_key_value_heads": None, "head_dim": None}
    config = config_from_hf(old)
    assert config.rope_scaling == preset("llama-3.2-1b").rope_scaling
    assert (config.n_kv_heads, config.head_dim) == (32, 64)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "nonsense"}, r"model_type is 'nonsense'; supported are .*gpt_neox, llama"),
        ({"model_type": None}, r"supported are .*gpt_neox, llama"),
        ({"hidden_size": None}, r"hidden_size is missing"),
        ({"hidden_act": "mish"}, r"hidden_act is 'mish'; supported are gelu"),
        ({"rope_scaling": {"type": "ntk", "factor": 2}}, r"rope_type is 'ntk'; supported are default, linear"),
        ({"num_key_value_heads": 5}, r"n_heads \(32\) must be a multiple of n_kv_heads \(5\)"),
        ({"num_hidden_layers": 0}, r"n_layers"),
        ({"rope_scaling": {"rope_type": "llama3"}}, r"factor is missing"),
    ],
)
def test_what_a_config_json_lacks_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_from_hf(LLAMA_4 | change)


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'pythia-160'; did you mean pythia-160m"):
        preset("pythia-160")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe"])
def test_a_family_of_experts_without_them_has_no_form(name: str) -> None:
    config = preset("llama-3.2-1b").model_copy(update={"family": name, "rope_scaling": None})
    with pytest.raises(ValueError, match=f"a {name} model has experts; give moe"):
        config_to_hf(config)


def test_an_unknown_family_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"family: unknown 'lama'; did you mean llama"):
        make_config(preset="llama-3.2-1b", fields={"family": "lama"}, hf=None)


# -- the config of a recipe ------------------------------------------------------------------------------------------
def test_fields_over_a_preset_derive_anew_what_followed_from_them() -> None:
    config = make_config(preset="pythia-160m", fields={"dim": 96, "n_heads": 3, "vocab_size": 1000}, hf=None)
    assert (config.head_dim, config.n_kv_heads, config.ffn_dim, config.padded_vocab_size) == (32, 3, 384, 1024)
    assert config.rope_fraction == 0.25
    assert config.parallel_residual


def test_fields_that_are_given_are_not_derived() -> None:
    fields = {"dim": 96, "head_dim": 16, "ffn_dim": 100, "vocab_size": 1000, "padded_vocab_size": 1000}
    config = make_config(preset="pythia-160m", fields=fields, hf=None)
    assert config.model_dump() == preset("pythia-160m").model_dump() | fields


def test_fields_that_change_nothing_change_nothing() -> None:
    wide = preset("pythia-6.9b")
    assert make_config(preset="pythia-6.9b", fields={"vocab_size": 50277, "dim": 4096, "norm": None}, hf=None) == wide


def test_what_did_not_follow_is_kept() -> None:
    config = make_config(preset="llama-3.1-8b", fields={"dim": 2048}, hf=None)
    assert (config.head_dim, config.n_kv_heads, config.ffn_dim) == (64, 8, 14336)


def test_weights_give_the_base_where_no_preset_does() -> None:
    config = make_config(preset=None, fields={"max_seq_len": 4096}, hf=LLAMA_5)
    assert config == preset("llama-3.2-1b").model_copy(update={"max_seq_len": 4096})


def test_knobs_alone_make_a_config() -> None:
    fields = {
        "family": "llama",
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "ffn_dim": 96,
        "vocab_size": 300,
        "max_seq_len": 32,
    }
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_seq_len": 16}
    config = make_config(preset=None, fields={**fields, "rope_scaling": scaling}, hf=None)
    assert config == ModelConfig.model_validate({**fields, "rope_scaling": RopeScaling(**scaling)})
    assert (config.head_dim, config.padded_vocab_size) == (16, 384)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": None, "fields": {"dim": 64}}, r"n_layers: Field required.*a model needs a preset"),
        ({"preset": "pythia-14m", "fields": {"dim": -4}}, r"model: dim: "),
        ({"preset": "pythia-14m", "fields": {"dim": 130}}, r"dim: 130 is not divisible by n_heads, 4"),
        ({"preset": "pythia-14m", "fields": {"qkv_bias": True}}, r"attention_bias one on q, k, v and o; set one"),
        ({"preset": "pythia-14m", "fields": {"width": 3}}, r"width: Extra inputs"),
        ({"preset": "pythia-14m", "fields": {"n_kv_heads": 3}}, r"must be a multiple of n_kv_heads \(3\)"),
    ],
)
def test_a_wrong_knob_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_config(**options, hf=None)
