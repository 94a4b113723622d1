"""What is refused, and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from launchyard.model.zoo import BY_TYPE, config_from_hf, rules
from launchyard.model.zoo.rules import check_keys, their_shapes
from launchyard.model.zoo.unsupported import MISSING
from tests.support.architectures import ARCHITECTURES


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama", {"model_type": "qwen3_next"}, "'qwen3_next', which is not supported: it has layers of gated delta"),
        ("llama", {"model_type": "qwen2_vl"}, "it has a part that sees images"),
        ("gpt-oss", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config is 'gptq'"),
        ("gpt-oss", {"swiglu_limit": 10.0}, r"swiglu_limit is 10\.0, .*supported is 7\.0"),
        ("gpt-oss", {"swiglu_alpha": 1.0}, "swiglu_alpha"),
        ("deepseek-v2", {"norm_topk_prob": True}, "norm_topk_prob is True, which is ignored by transformers"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method is 'noaux_tc'.*'greedy' or 'group_limited_greedy'"),
        ("deepseek-v2", {"mlp_bias": True}, "mlp_bias"),
        ("deepseek-v2", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("deepseek-v3", {"rope_interleave": False}, "rope_interleave is False"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'.*supported is 'sigmoid'"),
        ("glm4-moe", {"scoring_func": "softmax"}, "scoring_func"),
    ],
)
def test_what_is_missing_is_named(name: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_from_hf(ARCHITECTURES[name] | change)


def test_no_family_is_called_unsupported() -> None:
    assert not MISSING.keys() & BY_TYPE.keys()


@pytest.mark.parametrize("name", ["deepseek-v3", "glm4-moe"])
def test_only_layers_behind_the_last_are_dropped(name: str) -> None:
    config = config_from_hf(ARCHITECTURES[name])
    keys = [*their_shapes(rules(config), config)]
    last = config.n_layers
    check_keys(rules(config), config, [*keys, f"model.layers.{last}.eh_proj.weight"], where="here")
    with pytest.raises(ValueError, match=rf"unknown model\.layers\.{last - 1}\.eh_proj\.weight"):
        check_keys(rules(config), config, [*keys, f"model.layers.{last - 1}.eh_proj.weight"], where="here")
