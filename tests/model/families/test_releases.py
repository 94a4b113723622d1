"""Released config.json files are those of presets, in both generations of the keys; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.model.zoo import config_from_hf, preset
from tests.support.architectures import RELEASES


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_its_preset_whichever_transformers_wrote_it(name: str) -> None:
    from transformers import AutoConfig

    released = RELEASES[name]
    expected = preset(name).model_copy(update={"vocab_size": preset(name).padded_vocab_size})
    assert config_from_hf(released) == expected
    assert config_from_hf(AutoConfig.for_model(**released).to_dict()) == expected


GEMMA3: dict[str, Any] = {"model_type": "gemma3_text"}
EXAONE = {
    "model_type": "exaone4", "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 99,
}  # fmt: skip


def test_letters_tell_which_layers_of_exaone_see_a_window() -> None:
    """The last one sees everything, whatever its letter is."""
    config = config_from_hf(EXAONE | {"sliding_window_pattern": "LLGL"})
    seen = [config.sees(layer) for layer in range(8)]
    assert seen == ["window", "window", "full", "window", "window", "window", "full", "full"]
    assert [config.rotates(layer) for layer in range(8)] == [sees == "window" for sees in seen]


@pytest.mark.parametrize(
    ("hf", "said"),
    [
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping is 50.0, which is ignored .* null"),
        (GEMMA3 | {"use_bidirectional_attention": True}, r"use_bidirectional_attention is True, which is of an enc"),
        (EXAONE | {"model_type": "seed_oss", "attention_bias": False, "attention_out_bias": True}, r"of the output al"),
        (EXAONE | {"model_type": "smollm3", "no_rope_layers": [1, 0]}, r"no_rope_layers has 2 entries for 8 layers"),
        (EXAONE | {"model_type": "smollm3", "layer_types": ["sliding_attention"] * 8}, r"use_sliding_window is false"),
    ],
)
def test_what_is_not_supported_is_named(hf: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_from_hf(hf)
