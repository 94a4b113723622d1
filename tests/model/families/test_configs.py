"""config.json against transformers' own classes: their defaults, and what they make of what we write."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from launchyard.model.config import ModelConfig
from launchyard.model.zoo import config_from_hf, config_to_hf, preset
from tests.support.architectures import ARCHITECTURES, PARAMETERS, each_architecture


def as_transformers_writes(keys: dict[str, Any]) -> dict[str, Any]:
    """The same config with every key of the class, in its newest spelling."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**keys).to_dict()


@each_architecture
def test_a_key_that_is_absent_has_the_default_of_transformers(name: str) -> None:
    keys = ARCHITECTURES[name]
    assert config_from_hf(keys) == config_from_hf(as_transformers_writes(keys))
    for absent in keys.keys() - {"model_type"}:
        fewer = {key: value for key, value in keys.items() if key != absent}
        expected = read(fewer, whole=True)
        assert expected is None or read(fewer) in (None, expected), absent


def read(keys: dict[str, Any], *, whole: bool = False) -> ModelConfig | None:
    """None if the keys do not fit each other, or one is missing. whole: with what transformers adds to them."""
    try:
        return config_from_hf(as_transformers_writes(keys) if whole else keys)
    except (ValueError, ZeroDivisionError, StrictDataclassError):
        return None


@each_architecture
def test_transformers_4_spelt_rotations_otherwise(name: str) -> None:
    """One set for all layers, as `rope_scaling` and keys beside it."""
    keys = as_transformers_writes(ARCHITECTURES[name])
    rope = keys.pop("rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in rope.values()):
        pytest.skip("a set for each kind of layer")
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            keys[key] = rope.pop(key)
    keys["rope_scaling"] = {"type": rope.pop("rope_type", "default"), **rope}
    assert config_from_hf(keys) == config_from_hf(ARCHITECTURES[name])


@pytest.mark.parametrize("name", PARAMETERS)
def test_transformers_keeps_all_that_we_write(name: str) -> None:
    from transformers import CONFIG_MAPPING

    config = preset(name)
    if config.family not in CONFIG_MAPPING:
        pytest.skip("a family that transformers does not have")
    assert config_from_hf(as_transformers_writes(config_to_hf(config))) == config
